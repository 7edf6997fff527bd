-- Statements of the outbox. `:rows` and `:bytes` as `packed` gives them.

-- name: used_bytes
SELECT (page_count - freelist_count) * page_size
FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()

-- name: keep_new
-- For any number of rows, none of which may be there already: routing key, properties, where the id begins, where the
-- digest begins and its length, where the body begins and its length.
INSERT INTO outbox (event_id, accepted_at, routing_key, digest, properties, size, body)
SELECT
    substr(:bytes, json_extract(value, '$[2]'), 16),
    :now,
    json_extract(value, '$[0]'),
    substr(:bytes, json_extract(value, '$[3]'), json_extract(value, '$[4]')),
    CAST(json_extract(value, '$[1]') AS BLOB),
    json_extract(value, '$[6]'),
    substr(:bytes, json_extract(value, '$[5]'), json_extract(value, '$[6]'))
FROM json_each(:rows)

-- name: keep
INSERT INTO outbox (event_id, accepted_at, routing_key, digest, properties, size, body)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (event_id) DO NOTHING

-- name: write_probe
INSERT OR REPLACE INTO outbox_probe (place, filler) VALUES (1, zeroblob(65536))

-- name: clear_probe
DELETE FROM outbox_probe

-- name: kept
SELECT digest, routing_key, body FROM outbox WHERE event_id = ?

-- name: lease
SELECT owner, until FROM outbox_lease

-- name: take_lease
INSERT OR REPLACE INTO outbox_lease (place, owner, until) VALUES (1, :owner, :until)

-- name: end_lease
DELETE FROM outbox_lease WHERE owner = :owner

-- name: due
SELECT number, size FROM outbox
WHERE set_aside = 0 AND due_at <= :now
ORDER BY number LIMIT :limit

-- name: next_due_at
SELECT min(due_at) FROM outbox WHERE set_aside = 0

-- name: messages
SELECT number, event_id, accepted_at, routing_key, digest, properties, body, attempts
FROM outbox WHERE number IN (SELECT value FROM json_each(:numbers))
ORDER BY number

-- name: forwarded
DELETE FROM outbox WHERE number IN (SELECT value FROM json_each(:numbers))

-- name: postpone
UPDATE outbox SET attempts = attempts + 1, due_at = :due_at WHERE number = :number

-- name: set_aside
UPDATE outbox SET attempts = attempts + 1, set_aside = 1, reason = :reason WHERE number = :number

-- name: totals
SELECT set_aside, count(*), sum(size), min(number) FROM outbox GROUP BY set_aside

-- name: accepted_at
SELECT accepted_at FROM outbox WHERE number = ?

-- name: entries
SELECT number, event_id, routing_key, accepted_at, size, attempts, reason
FROM outbox
WHERE number > :after AND set_aside IN (SELECT value FROM json_each(:kinds))
ORDER BY number LIMIT :limit

-- name: retry_all
UPDATE outbox SET set_aside = 0, reason = NULL, attempts = 0, due_at = 0 WHERE set_aside = 1

-- name: retry
UPDATE outbox SET set_aside = 0, reason = NULL, attempts = 0, due_at = 0 WHERE set_aside = 1 AND event_id = ?

-- name: drop
DELETE FROM outbox WHERE set_aside = 1 AND event_id = ?

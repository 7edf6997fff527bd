-- Statements of the journal. The tables stand in journal_schema.sql; `:rows` and `:bytes` as `packed` gives them.

-- name: used
-- How many links are kept, or a few more. What waits is taken out in order, so that its numbers have no gap for long, and
-- the ends are found at once where counting would read it all. What is set aside is little, most often nothing.
SELECT ifnull((SELECT max(number) FROM journal) - (SELECT min(number) FROM journal) + 1, 0)
    + (SELECT count(*) FROM journal_aside)

-- name: append_all
-- For any number of rows, none of them unless there is room for all: type, source, the two times, where the id begins,
-- then where the parents and the digest begin, each with its length.
INSERT INTO journal (event_id, parents, event_type, source, happened_at, accepted_at, digest)
SELECT
    substr(:bytes, json_extract(value, '$[4]'), 16),
    substr(:bytes, json_extract(value, '$[5]'), json_extract(value, '$[6]')),
    json_extract(value, '$[0]'),
    json_extract(value, '$[1]'),
    json_extract(value, '$[2]'),
    json_extract(value, '$[3]'),
    substr(:bytes, json_extract(value, '$[7]'), json_extract(value, '$[8]'))
FROM json_each(:rows)
WHERE :count + ifnull((SELECT max(number) FROM journal) - (SELECT min(number) FROM journal) + 1, 0)
    + (SELECT count(*) FROM journal_aside) <= :limit
ORDER BY key

-- name: append_one
-- The same for one row, without JSON: who publishes one by one waits for each. The last value is the limit.
INSERT INTO journal (event_id, parents, event_type, source, happened_at, accepted_at, digest)
SELECT ?, ?, ?, ?, ?, ?, ?
WHERE ifnull((SELECT max(number) FROM journal) - (SELECT min(number) FROM journal) + 1, 0)
    + (SELECT count(*) FROM journal_aside) < ?

-- name: append
INSERT INTO journal (event_id, parents, event_type, source, happened_at, accepted_at, digest)
VALUES (?, ?, ?, ?, ?, ?, ?)

-- name: first
SELECT number, event_id, parents, event_type, source, happened_at, accepted_at, digest
FROM journal ORDER BY number LIMIT ?

-- name: remove
DELETE FROM journal WHERE number IN (SELECT value FROM json_each(?))

-- name: copy_aside
INSERT INTO journal_aside (number, event_id, parents, event_type, source, happened_at, accepted_at, digest, reason)
SELECT number, event_id, parents, event_type, source, happened_at, accepted_at, digest, :reason
FROM journal WHERE number = :number

-- name: copy_back
INSERT INTO journal (event_id, parents, event_type, source, happened_at, accepted_at, digest)
SELECT event_id, parents, event_type, source, happened_at, accepted_at, digest FROM journal_aside ORDER BY number

-- name: clear_aside
DELETE FROM journal_aside

-- name: count_waiting
SELECT ifnull((SELECT max(number) FROM journal) - (SELECT min(number) FROM journal) + 1, 0)

-- name: count_aside
SELECT count(*) FROM journal_aside

-- name: missed
SELECT total, since, until FROM journal_missed

-- name: add_missed
INSERT INTO journal_missed (place, total, since, until) VALUES (1, :total, :since, :until)
ON CONFLICT (place) DO UPDATE SET
    total = total + excluded.total,
    since = min(since, excluded.since),
    until = max(until, excluded.until)

-- name: clear_missed
DELETE FROM journal_missed WHERE since >= :since AND until <= :until

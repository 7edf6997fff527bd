-- The statements of the embedded log. The tables stand in embedded_schema.sql.

-- name: append
INSERT INTO log (event_id, logged_at, routing_key, digest, correlation_id, app_id, headers, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (event_id) DO NOTHING

-- name: append_new
-- For any number of rows, as `packed` gives them, none of which may be there already: routing key, app, headers, where
-- the id begins, where the digest begins and its length, where the cause begins, where the body begins and its length.
INSERT INTO log (event_id, logged_at, routing_key, digest, correlation_id, app_id, headers, body)
SELECT
    substr(:bytes, json_extract(value, '$[3]'), 16),
    :now,
    json_extract(value, '$[0]'),
    substr(:bytes, json_extract(value, '$[4]'), json_extract(value, '$[5]')),
    substr(:bytes, json_extract(value, '$[6]'), 16),
    json_extract(value, '$[1]'),
    CAST(json_extract(value, '$[2]') AS BLOB),
    substr(:bytes, json_extract(value, '$[7]'), json_extract(value, '$[8]'))
FROM json_each(:rows)

-- name: published_before
SELECT position, routing_key, digest, body FROM log WHERE event_id = ?

-- name: message
SELECT position, logged_at, event_id, routing_key, body, digest, correlation_id, app_id, headers
FROM log WHERE event_id = ?

-- name: message_at
SELECT position, logged_at, event_id, routing_key, body, digest, correlation_id, app_id, headers
FROM log WHERE position = ?

-- name: entries_after
SELECT position, logged_at, event_id, routing_key, body, digest, correlation_id, app_id, headers
FROM log WHERE position > ? ORDER BY position LIMIT ?

-- name: keys_after
SELECT position, routing_key FROM log WHERE position > ? ORDER BY position LIMIT ?

-- name: last_position
SELECT coalesce(max(position), 0) FROM log

-- name: position_from_end
SELECT position FROM log ORDER BY position DESC LIMIT 1 OFFSET ?

-- name: first_position_since
-- The clock may have stepped back, so the first by time need not be the first by place.
SELECT min(position) FROM log INDEXED BY log_logged_at WHERE logged_at >= ?

-- name: write_probe
INSERT INTO probe (written_at) VALUES (?)

-- name: clear_probe
DELETE FROM probe

-- name: add_group
INSERT INTO consumer_group (name, cursor, seen_at) VALUES (:name, :cursor, :now)

-- name: groups
SELECT id, name FROM consumer_group

-- name: group_id
SELECT id FROM consumer_group WHERE name = ?

-- name: add_pattern
INSERT INTO group_pattern (group_id, pattern) VALUES (?, ?) ON CONFLICT DO NOTHING

-- name: patterns_of
SELECT pattern FROM group_pattern WHERE group_id = ?

-- name: held_by_group
SELECT name, id, cursor, (SELECT count(*) FROM delivery WHERE group_id = consumer_group.id) FROM consumer_group

-- name: group_states
-- Without an owner, or when its lease is over, a delivery may be handed out again.
SELECT
    id, name, cursor,
    (SELECT count(*) FROM delivery WHERE group_id = consumer_group.id),
    (SELECT count(*) FROM delivery WHERE group_id = consumer_group.id AND owner IS NOT NULL AND due_at > :now)
FROM consumer_group ORDER BY cursor DESC

-- name: count_keys
-- Of the newest entries first, so that what is counted stands at the end of what waits.
SELECT routing_key, count(*)
FROM (
    SELECT routing_key FROM log WHERE position > :after AND position <= :until ORDER BY position DESC LIMIT :limit
)
GROUP BY routing_key

-- name: cursor_of
SELECT cursor FROM consumer_group WHERE id = ?

-- name: move_cursor
UPDATE consumer_group SET cursor = :cursor WHERE id = :group_id

-- name: touch_group
UPDATE consumer_group SET seen_at = :now WHERE id = :group_id

-- name: next_due
SELECT min(due_at) FROM delivery WHERE group_id = ?

-- name: due
SELECT position, attempt, first_at FROM delivery
WHERE group_id = :group_id AND due_at <= :now
ORDER BY position LIMIT :room

-- name: hold
INSERT INTO delivery (group_id, position, attempt, owner, due_at, first_at)
VALUES (:group_id, :position, :attempt, :owner, :due_at, :first_at)
ON CONFLICT (group_id, position) DO UPDATE SET
    attempt = excluded.attempt, owner = excluded.owner, due_at = excluded.due_at, first_at = excluded.first_at

-- name: renew
UPDATE delivery SET due_at = :due_at WHERE group_id = :group_id AND position = :position AND owner = :owner

-- name: settle
DELETE FROM delivery WHERE group_id = :group_id AND position = :position AND owner = :owner

-- name: postpone
UPDATE delivery SET owner = NULL, due_at = :due_at
WHERE group_id = :group_id AND position = :position AND owner = :owner

-- name: give_back_untried
-- What was fetched ahead and never reached the consumer does not count as an attempt.
UPDATE delivery
SET owner = NULL, due_at = :now, attempt = attempt - 1, first_at = CASE WHEN attempt > 1 THEN first_at END
WHERE group_id = :group_id AND owner = :owner

-- name: bury
INSERT INTO dead_letter (
    group_name, reason, error, traceback, consumer, attempts, first_at, dead_at,
    event_id, routing_key, digest, correlation_id, app_id, headers, body, replayed
)
VALUES (
    :group_name, :reason, :error, :traceback, :consumer, :attempts, :first_at, :dead_at,
    :event_id, :routing_key, :digest, :correlation_id, :app_id, :headers, :body, :replayed
)

-- name: dead_letters_after
-- The columns of a message stand last, as in the log.
SELECT
    number, group_name, reason, error, traceback, consumer, attempts, first_at, dead_at,
    number, dead_at, event_id, routing_key, body, digest, correlation_id, app_id, headers
FROM dead_letter
WHERE number > :after AND (:group_name IS NULL OR group_name = :group_name)
ORDER BY number LIMIT :limit

-- name: count_dead_letters
SELECT count(*) FROM dead_letter

-- name: groups_of_dead_letters
SELECT DISTINCT group_name FROM dead_letter WHERE number IN (SELECT value FROM json_each(:numbers))

-- name: numbers_with_group
SELECT number, (SELECT id FROM consumer_group WHERE name = group_name)
FROM dead_letter
WHERE number IN (SELECT value FROM json_each(:numbers)) AND group_name != ''
ORDER BY number

-- name: resend_dead_letter
INSERT INTO resent (replayed, event_id, routing_key, digest, correlation_id, app_id, headers, body)
SELECT replayed, event_id, routing_key, digest, correlation_id, app_id, headers, body FROM dead_letter WHERE number = ?

-- name: resend
INSERT INTO resent (replayed, event_id, routing_key, digest, correlation_id, app_id, headers, body)
VALUES (1, :event_id, :routing_key, :digest, :correlation_id, :app_id, :headers, :body)

-- name: resent_at
SELECT position, 0, event_id, routing_key, body, digest, correlation_id, app_id, headers, replayed
FROM resent WHERE position = ?

-- name: deliver_resent
INSERT INTO delivery (group_id, position, attempt, due_at) VALUES (:group_id, :position, 0, :now)

-- name: settle_resent
DELETE FROM resent WHERE position = ?

-- name: discard
DELETE FROM dead_letter WHERE number IN (SELECT value FROM json_each(:numbers))

-- name: purge_log
DELETE FROM log WHERE position IN (SELECT position FROM log WHERE logged_at < :before ORDER BY logged_at LIMIT :limit)

-- name: purge_dead_letters
DELETE FROM dead_letter
WHERE number IN (SELECT number FROM dead_letter WHERE dead_at < :before ORDER BY dead_at LIMIT :limit)

-- name: purge_groups
DELETE FROM consumer_group WHERE seen_at < :before

-- name: purge_patterns
DELETE FROM group_pattern
WHERE NOT EXISTS (SELECT 1 FROM consumer_group WHERE consumer_group.id = group_pattern.group_id)

-- name: purge_deliveries
-- Those of purged entries and of purged groups.
DELETE FROM delivery
WHERE (
    NOT EXISTS (SELECT 1 FROM log WHERE log.position = delivery.position)
    AND NOT EXISTS (SELECT 1 FROM resent WHERE resent.position = delivery.position)
)
OR NOT EXISTS (SELECT 1 FROM consumer_group WHERE consumer_group.id = delivery.group_id)

-- name: purge_resent_of_groups
DELETE FROM resent WHERE position IN (
    SELECT position FROM delivery
    WHERE position >= 4611686018427387904
    AND NOT EXISTS (SELECT 1 FROM consumer_group WHERE consumer_group.id = delivery.group_id)
)

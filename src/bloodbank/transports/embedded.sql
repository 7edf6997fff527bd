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

-- name: join_group
-- A new group begins behind what is there.
INSERT INTO consumer_group (name, cursor, seen_at)
VALUES (:name, (SELECT coalesce(max(position), 0) FROM log), :now)
ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at

-- name: group_id
SELECT id FROM consumer_group WHERE name = ?

-- name: add_pattern
INSERT INTO group_pattern (group_id, pattern) VALUES (?, ?) ON CONFLICT DO NOTHING

-- name: patterns_of
SELECT pattern FROM group_pattern WHERE group_id = ?

-- name: cursor_of
SELECT cursor FROM consumer_group WHERE id = ?

-- name: move_cursor
UPDATE consumer_group SET cursor = :cursor WHERE id = :group_id

-- name: touch_group
UPDATE consumer_group SET seen_at = :now WHERE id = :group_id

-- name: next_due
SELECT min(due_at) FROM delivery WHERE group_id = ?

-- name: due
SELECT position, attempt FROM delivery
WHERE group_id = :group_id AND due_at <= :now
ORDER BY position LIMIT :room

-- name: hold
INSERT INTO delivery (group_id, position, attempt, owner, due_at)
VALUES (:group_id, :position, :attempt, :owner, :due_at)
ON CONFLICT (group_id, position) DO UPDATE SET
    attempt = excluded.attempt, owner = excluded.owner, due_at = excluded.due_at

-- name: renew
UPDATE delivery SET due_at = :due_at WHERE group_id = :group_id AND position = :position AND owner = :owner

-- name: settle
DELETE FROM delivery WHERE group_id = :group_id AND position = :position AND owner = :owner

-- name: postpone
UPDATE delivery SET owner = NULL, due_at = :due_at
WHERE group_id = :group_id AND position = :position AND owner = :owner

-- name: give_back_untried
-- What was fetched ahead and never reached the consumer does not count as an attempt.
UPDATE delivery SET owner = NULL, due_at = :now, attempt = attempt - 1
WHERE group_id = :group_id AND owner = :owner

-- name: bury
INSERT INTO dead_letter
    (group_name, attempt, reason, dead_at, position, event_id, routing_key, headers, body)
VALUES (:group_name, :attempt, :reason, :now, :position, :event_id, :routing_key, :headers, :body)

-- name: purge_log
DELETE FROM log WHERE position IN (SELECT position FROM log WHERE logged_at < :before ORDER BY logged_at LIMIT :limit)

-- name: purge_dead_letters
DELETE FROM dead_letter WHERE id IN (SELECT id FROM dead_letter WHERE dead_at < :before ORDER BY dead_at LIMIT :limit)

-- name: purge_groups
DELETE FROM consumer_group WHERE seen_at < :before

-- name: purge_patterns
DELETE FROM group_pattern
WHERE NOT EXISTS (SELECT 1 FROM consumer_group WHERE consumer_group.id = group_pattern.group_id)

-- name: purge_deliveries
-- Those of purged entries and of purged groups.
DELETE FROM delivery
WHERE NOT EXISTS (SELECT 1 FROM log WHERE log.position = delivery.position)
    OR NOT EXISTS (SELECT 1 FROM consumer_group WHERE consumer_group.id = delivery.group_id)

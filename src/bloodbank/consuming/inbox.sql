-- The statements of the inbox in a file. The table stands in inbox_schema.sql.

-- name: seen
-- Those of the ids in :ids, which stand there end to end, that the group has handled since a time.
WITH RECURSIVE place (start) AS (
    SELECT 1
    UNION ALL
    SELECT start + 16 FROM place WHERE start + 16 < length(:ids)
)
SELECT event_id FROM place CROSS JOIN inbox ON group_name = :group AND event_id = substr(:ids, start, 16)
WHERE handled_at >= :since

-- name: mark
INSERT INTO inbox (group_name, event_id, handled_at) VALUES (?, ?, ?)
ON CONFLICT (group_name, event_id) DO UPDATE SET handled_at = excluded.handled_at

-- name: forget
-- Some of those that are older than a time, so that no note waits for long.
DELETE FROM inbox WHERE (group_name, event_id) IN (
    SELECT group_name, event_id FROM inbox WHERE handled_at < :before ORDER BY handled_at LIMIT :limit
)

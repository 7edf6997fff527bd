-- The statements about claims. The table stands in claims_schema.sql.

-- name: remove_expired
-- Some of them, so that no claim waits for long.
DELETE FROM claim WHERE id IN (SELECT id FROM claim WHERE ends_at <= :now ORDER BY ends_at LIMIT :limit)

-- name: held
-- The claims of the ids in :ids, which stand there end to end, that have not ended.
WITH RECURSIVE place (start) AS (
    SELECT 1
    UNION ALL
    SELECT start + 16 FROM place WHERE start + 16 < length(:ids)
)
SELECT id, owner, digest, ends_at FROM place CROSS JOIN claim ON claim.id = substr(:ids, start, 16)
WHERE ends_at > :now

-- name: recorded
-- Those of the ids that are more than a name, with their digests.
WITH RECURSIVE place (start) AS (
    SELECT 1
    UNION ALL
    SELECT start + 16 FROM place WHERE start + 16 < length(:ids)
)
SELECT id, digest FROM place CROSS JOIN node ON node.id = substr(:ids, start, 16) WHERE parents IS NOT NULL

-- name: grant
INSERT INTO claim (id, owner, digest, ends_at) VALUES (?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, digest = excluded.digest, ends_at = excluded.ends_at

-- name: release
DELETE FROM claim WHERE id = ? AND owner = ?

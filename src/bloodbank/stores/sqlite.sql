-- The statements of the SQLite store. The tables stand in schema.sql.

-- name: recorded
-- Those of the ids in :ids, which stand there end to end, that are more than a name.
WITH RECURSIVE place (start) AS (
    SELECT 1
    UNION ALL
    SELECT start + 16 FROM place WHERE start + 16 < length(:ids)
)
SELECT id FROM place CROSS JOIN node ON node.id = substr(:ids, start, 16) WHERE parents IS NOT NULL

-- name: record_node
-- Changes nothing when the event is known already: the first one wins.
INSERT INTO node (id, parents, event_type, source, happened_at, accepted_at, digest)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    parents = excluded.parents,
    event_type = excluded.event_type,
    source = excluded.source,
    happened_at = excluded.happened_at,
    accepted_at = excluded.accepted_at,
    digest = excluded.digest
WHERE node.parents IS NULL

-- name: record_nodes
-- The same for any number of rows, as `packed` gives them: type, source, the two times, where the id begins, then
-- where the parents and the digest begin, each with its length.
INSERT INTO node (id, parents, event_type, source, happened_at, accepted_at, digest)
SELECT
    substr(:bytes, json_extract(value, '$[4]'), 16),
    substr(:bytes, json_extract(value, '$[5]'), json_extract(value, '$[6]')),
    json_extract(value, '$[0]'),
    json_extract(value, '$[1]'),
    json_extract(value, '$[2]'),
    json_extract(value, '$[3]'),
    substr(:bytes, json_extract(value, '$[7]'), json_extract(value, '$[8]'))
FROM json_each(:rows)
WHERE true
ON CONFLICT (id) DO UPDATE SET
    parents = excluded.parents,
    event_type = excluded.event_type,
    source = excluded.source,
    happened_at = excluded.happened_at,
    accepted_at = excluded.accepted_at,
    digest = excluded.digest
WHERE node.parents IS NULL

-- name: record_edges
-- :ends holds the ids of parent and child, edge after edge, end to end.
WITH RECURSIVE place (start) AS (
    SELECT 1
    UNION ALL
    SELECT start + 32 FROM place WHERE start + 32 < length(:ends)
)
INSERT INTO edge (parent, child)
SELECT substr(:ends, start, 16), substr(:ends, start + 16, 16) FROM place
WHERE true
ON CONFLICT DO NOTHING

-- name: node
SELECT id, children, parents, event_type, source, happened_at, accepted_at, digest FROM node WHERE id = ?

-- name: nodes
-- :ids holds the ids end to end. The recursion only counts through them: one statement for any number of ids.
WITH RECURSIVE place (start) AS (
    SELECT 1
    UNION ALL
    SELECT start + 16 FROM place WHERE start + 16 < length(:ids)
)
SELECT id, children, parents, event_type, source, happened_at, accepted_at, digest
FROM place CROSS JOIN node ON node.id = substr(:ids, start, 16)

-- name: first_ancestors
-- An event, its first parent, the first parent of that, … :limit rows at most, which also ends a circle.
WITH RECURSIVE line (id, children, parents, event_type, source, happened_at, accepted_at, digest) AS (
    SELECT id, children, parents, event_type, source, happened_at, accepted_at, digest FROM node WHERE id = :id
    UNION ALL
    SELECT node.id, node.children, node.parents, node.event_type, node.source, node.happened_at, node.accepted_at,
        node.digest
    FROM line JOIN node ON node.id = substr(line.parents, 1, 16)
    LIMIT :limit
)
SELECT id, children, parents, event_type, source, happened_at, accepted_at, digest FROM line

-- name: children_of_many
-- All children, each parent's in order of their ids. For parents with few of them.
WITH RECURSIVE place (start) AS (
    SELECT 1
    UNION ALL
    SELECT start + 16 FROM place WHERE start + 16 < length(:ids)
)
SELECT parent, child
FROM place CROSS JOIN edge ON edge.parent = substr(:ids, start, 16)

-- name: children_of_one
SELECT child FROM edge WHERE parent = ? ORDER BY child LIMIT ?

-- name: accepted_before
SELECT id, parents FROM node WHERE accepted_at < :before ORDER BY accepted_at LIMIT :limit

-- name: remove_edge
DELETE FROM edge WHERE parent = ? AND child = ?

-- name: forget_node
-- What is known of it goes; its name stays while an event names it as a parent.
UPDATE node
SET parents = NULL, event_type = NULL, source = NULL, happened_at = NULL, accepted_at = NULL, digest = NULL
WHERE id = ?

-- name: remove_unnamed
DELETE FROM node WHERE id = ? AND children = 0

-- name: ready
SELECT 1 FROM node LIMIT 1

-- Which format each part of the file has. The log and the index share one file and change by themselves.

-- name: create_formats
CREATE TABLE IF NOT EXISTS format (
    part TEXT PRIMARY KEY,
    version INTEGER NOT NULL
) WITHOUT ROWID

-- name: has_formats
SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'format'

-- name: format_of
SELECT version FROM format WHERE part = :part

-- name: add_format
INSERT INTO format (part, version) VALUES (:part, :version)

-- name: change_format
UPDATE format SET version = :version WHERE part = :part

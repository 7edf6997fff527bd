-- Makes format 2 of the embedded log out of format 1; embedded_schema.sql says what the tables are for.

ALTER TABLE delivery ADD COLUMN first_at INTEGER;

CREATE TABLE resent (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    replayed INTEGER NOT NULL,
    event_id BLOB NOT NULL,
    routing_key TEXT NOT NULL,
    digest BLOB NOT NULL,
    correlation_id BLOB,
    app_id TEXT,
    headers BLOB NOT NULL,
    body BLOB NOT NULL
);

INSERT INTO sqlite_sequence (name, seq) VALUES ('resent', 4611686018427387903);

-- A new table, for a number that is never used again. What format 1 did not keep with a dead letter, the log may know.
ALTER TABLE dead_letter RENAME TO dead_letter_1;
DROP INDEX dead_letter_dead_at;

CREATE TABLE dead_letter (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    group_name TEXT NOT NULL,
    reason TEXT NOT NULL,
    error TEXT NOT NULL,
    traceback TEXT NOT NULL,
    consumer TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first_at INTEGER,
    dead_at INTEGER NOT NULL,
    event_id BLOB NOT NULL,
    routing_key TEXT NOT NULL,
    digest BLOB NOT NULL,
    correlation_id BLOB,
    app_id TEXT,
    headers BLOB NOT NULL,
    body BLOB NOT NULL
);

INSERT INTO dead_letter
SELECT
    old.id, coalesce(old.group_name, ''), old.reason, '', '', '', old.attempt, NULL, old.dead_at, old.event_id,
    old.routing_key, coalesce(log.digest, x''), log.correlation_id, log.app_id, old.headers, old.body
FROM dead_letter_1 AS old LEFT JOIN log ON log.event_id = old.event_id;

DROP TABLE dead_letter_1;

CREATE INDEX dead_letter_dead_at ON dead_letter (dead_at);

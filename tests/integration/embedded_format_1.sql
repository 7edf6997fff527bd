-- A file as version 0.2.0 left it.

CREATE TABLE format (part TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO format (part, version) VALUES ('log', 1);

CREATE TABLE log (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id BLOB NOT NULL UNIQUE,
    logged_at INTEGER NOT NULL,
    routing_key TEXT NOT NULL,
    digest BLOB NOT NULL,
    correlation_id BLOB,
    app_id TEXT,
    headers BLOB NOT NULL,
    body BLOB NOT NULL
);

CREATE INDEX log_logged_at ON log (logged_at);

CREATE TABLE consumer_group (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    cursor INTEGER NOT NULL,
    seen_at INTEGER NOT NULL
);

CREATE TABLE group_pattern (
    group_id INTEGER NOT NULL,
    pattern TEXT NOT NULL,
    PRIMARY KEY (group_id, pattern)
) WITHOUT ROWID;

CREATE TABLE delivery (
    group_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    owner BLOB,
    due_at INTEGER NOT NULL,
    PRIMARY KEY (group_id, position)
) WITHOUT ROWID;

CREATE INDEX delivery_due ON delivery (group_id, due_at);

CREATE TABLE dead_letter (
    id INTEGER PRIMARY KEY,
    group_name TEXT,
    attempt INTEGER NOT NULL,
    reason TEXT NOT NULL,
    dead_at INTEGER NOT NULL,
    position INTEGER NOT NULL,
    event_id BLOB NOT NULL,
    routing_key TEXT NOT NULL,
    headers BLOB NOT NULL,
    body BLOB NOT NULL
);

CREATE INDEX dead_letter_dead_at ON dead_letter (dead_at);

CREATE TABLE probe (
    written_at INTEGER NOT NULL
);

-- Times are now, so that nothing is forgotten while a test runs.
INSERT INTO log (position, event_id, logged_at, routing_key, digest, correlation_id, app_id, headers, body)
VALUES
(
    4, x'019b76da000070008000000000000004', unixepoch() * 1000000, 'a.b', CAST('dddddddddddddddd' AS BLOB), NULL,
    'app', CAST('{"h":"x"}' AS BLOB), CAST('held' AS BLOB)
),
(
    5, x'019b76da000070008000000000000005', unixepoch() * 1000000, 'a.b', x'', NULL, NULL, CAST('{}' AS BLOB),
    CAST('waiting' AS BLOB)
);

INSERT INTO consumer_group (id, name, cursor, seen_at) VALUES (3, 'workers', 4, unixepoch() * 1000000);
INSERT INTO group_pattern (group_id, pattern) VALUES (3, '#');

-- Its consumer was killed, and its lease is over.
INSERT INTO delivery (group_id, position, attempt, owner, due_at)
VALUES (3, 4, 1, CAST('oooooooooooooooo' AS BLOB), unixepoch() * 1000000 - 1);

INSERT INTO dead_letter (id, group_name, attempt, reason, dead_at, position, event_id, routing_key, headers, body)
VALUES
(
    7, 'workers', 3, 'broken', unixepoch() * 1000000, 4, x'019b76da000070008000000000000004', 'a.b',
    CAST('{"h":"x"}' AS BLOB), CAST('held' AS BLOB)
),
(
    9, NULL, 1, 'older', unixepoch() * 1000000, 2, x'019b76da000070008000000000000002', 'a.b', CAST('{}' AS BLOB),
    CAST('forgotten' AS BLOB)
);

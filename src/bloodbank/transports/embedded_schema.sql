-- The embedded log, format 3. Times are microseconds since 1970, UTC; ids are 16 bytes.

-- What was published, for as long as the log keeps it. AUTOINCREMENT: a position is never used again, also when
-- the entries behind it are gone. The body stands last, so that reading the columns before it does not touch it.
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

-- Durable groups of consumers. Entries up to `cursor` were handed out, or fit none of its patterns.
CREATE TABLE consumer_group (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    cursor INTEGER NOT NULL,
    seen_at INTEGER NOT NULL
);

-- What a group wants. Patterns of one group add up, as the bindings of an AMQP queue do.
CREATE TABLE group_pattern (
    group_id INTEGER NOT NULL,
    pattern TEXT NOT NULL,
    PRIMARY KEY (group_id, pattern)
) WITHOUT ROWID;

-- What a group has handed out and not settled. With an owner, `due_at` is the end of the owner's lease;
-- without, the time from which it may be handed out again. Either way: whoever comes after it may take it.
-- `first_at` is when it was handed out for the first time.
CREATE TABLE delivery (
    group_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    owner BLOB,
    due_at INTEGER NOT NULL,
    first_at INTEGER,
    PRIMARY KEY (group_id, position)
) WITHOUT ROWID;

CREATE INDEX delivery_due ON delivery (group_id, due_at);

-- What a group is given beside the log: dead letters that are put back, and replays. Each belongs to one delivery and
-- goes with it. Positions begin behind all that the log will ever use.
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

-- What consumers set aside, with what they told of it: a copy, kept for as long again as the log keeps entries.
-- Without a group its name is empty. `replayed`: what was set aside was a replay, and is one when it is given back.
-- AUTOINCREMENT: a number is never used again.
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
    body BLOB NOT NULL,
    replayed INTEGER NOT NULL DEFAULT 0
);

CREATE INDEX dead_letter_dead_at ON dead_letter (dead_at);

-- Written and emptied again by a check of the disk.
CREATE TABLE probe (
    written_at INTEGER NOT NULL
);

-- The embedded log, format 1. Times are microseconds since 1970, UTC; ids are 16 bytes.

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
CREATE TABLE delivery (
    group_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    owner BLOB,
    due_at INTEGER NOT NULL,
    PRIMARY KEY (group_id, position)
) WITHOUT ROWID;

CREATE INDEX delivery_due ON delivery (group_id, due_at);

-- What consumers set aside, with the reason: a copy, kept for as long again as the log keeps entries.
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

-- Written and emptied again by a check of the disk.
CREATE TABLE probe (
    written_at INTEGER NOT NULL
);

-- Accepted events that wait for the broker, and those that it refused for good. Format 1.

CREATE TABLE outbox (
    -- In the order of acceptance; never given twice.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id BLOB NOT NULL UNIQUE,
    -- Microseconds since 1970, UTC.
    accepted_at INTEGER NOT NULL,
    routing_key TEXT NOT NULL,
    digest BLOB NOT NULL,
    -- JSON: the first parent, the application, the headers.
    properties BLOB NOT NULL,
    size INTEGER NOT NULL,
    -- How often the broker was asked and did not take it, and when it may be asked again.
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at INTEGER NOT NULL DEFAULT 0,
    -- 1: the broker refused it for good, and `reason` says why.
    set_aside INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    body BLOB NOT NULL
);

-- Holds all that is counted or asked for by order, so that neither reads bodies.
CREATE INDEX outbox_order ON outbox (set_aside, number, due_at, size);

-- Written by those who look whether the disk takes anything.
CREATE TABLE outbox_probe (
    place INTEGER PRIMARY KEY CHECK (place = 1),
    filler BLOB NOT NULL
);

-- The one process that forwards at present. No row: nobody does.
CREATE TABLE outbox_lease (
    place INTEGER PRIMARY KEY CHECK (place = 1),
    owner BLOB NOT NULL,
    until INTEGER NOT NULL
);

-- Links that wait for the correlation store, format 1.

-- In the order in which they came. Numbers are never given twice: two processes may hand over the same links, and
-- what one removes afterwards must not be something new of the other.
-- Ids are 16 bytes, `parents` holds them end to end in the order of the envelope. Times are microseconds since
-- 1970, UTC.
CREATE TABLE journal (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id BLOB NOT NULL,
    parents BLOB NOT NULL,
    event_type TEXT NOT NULL,
    source TEXT NOT NULL,
    happened_at INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    digest BLOB NOT NULL
);

-- Links that the store refused by themselves, with its reason. They wait again when a process starts.
CREATE TABLE journal_aside (
    number INTEGER PRIMARY KEY,
    event_id BLOB NOT NULL,
    parents BLOB NOT NULL,
    event_type TEXT NOT NULL,
    source TEXT NOT NULL,
    happened_at INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    digest BLOB NOT NULL,
    reason TEXT NOT NULL
);

-- Links that had no place: how many, and when the first and the last of them were accepted. One row, or none.
CREATE TABLE journal_missed (
    place INTEGER PRIMARY KEY CHECK (place = 1),
    total INTEGER NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER NOT NULL
);

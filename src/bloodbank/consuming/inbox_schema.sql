-- The inbox, format 1: which events a group has handled.

-- Ids are 16 bytes, the time is in microseconds since 1970, UTC, by the clock of the machine.
CREATE TABLE inbox (
    group_name TEXT NOT NULL,
    event_id BLOB NOT NULL,
    handled_at INTEGER NOT NULL,
    PRIMARY KEY (group_name, event_id)
) WITHOUT ROWID;

CREATE INDEX inbox_age ON inbox (handled_at);

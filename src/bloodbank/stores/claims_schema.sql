-- Claims, format 1: who may publish an event that nobody has recorded, and until when.

-- Ids are 16 bytes, the end of a lease is in microseconds since 1970, UTC, by the clock of the machine.
CREATE TABLE claim (
    id BLOB NOT NULL PRIMARY KEY,
    owner BLOB NOT NULL,
    digest BLOB NOT NULL,
    ends_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX claim_ends ON claim (ends_at);

-- The index of causes, format 1.

-- An event, or the mere name of one: what was named as a parent and never seen has NULL in `parents`.
-- Ids are 16 bytes, `parents` holds them end to end in the order of the envelope. Times are microseconds since
-- 1970, UTC. `children` is the number of edges that begin here, kept by the triggers below.
CREATE TABLE node (
    id BLOB NOT NULL PRIMARY KEY,
    children INTEGER NOT NULL DEFAULT 0,
    parents BLOB,
    event_type TEXT,
    source TEXT,
    happened_at INTEGER,
    accepted_at INTEGER,
    digest BLOB
) WITHOUT ROWID;

CREATE INDEX node_accepted ON node (accepted_at) WHERE accepted_at IS NOT NULL;

-- The children of an event lie side by side, in order of their ids.
CREATE TABLE edge (
    parent BLOB NOT NULL,
    child BLOB NOT NULL,
    PRIMARY KEY (parent, child)
) WITHOUT ROWID;

CREATE TRIGGER edge_added AFTER INSERT ON edge BEGIN
    INSERT INTO node (id, children) VALUES (NEW.parent, 1)
        ON CONFLICT (id) DO UPDATE SET children = children + 1;
END;

CREATE TRIGGER edge_removed AFTER DELETE ON edge BEGIN
    UPDATE node SET children = children - 1 WHERE id = OLD.parent;
    DELETE FROM node WHERE id = OLD.parent AND children = 0 AND parents IS NULL;
END;

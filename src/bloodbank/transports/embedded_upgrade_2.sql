-- Makes format 3 of the embedded log out of format 2; embedded_schema.sql says what the tables are for.

ALTER TABLE dead_letter ADD COLUMN replayed INTEGER NOT NULL DEFAULT 0;

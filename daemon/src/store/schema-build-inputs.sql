-- Inputs of the steps of builds, as JSON, from which later builds learn why their steps ran again.
CREATE TABLE build_inputs (
    build_id TEXT PRIMARY KEY REFERENCES builds (id) ON DELETE CASCADE,
    inputs   TEXT NOT NULL,
    -- Digest of the context, which is the key of its listing.
    context  TEXT NOT NULL
) STRICT;
CREATE INDEX build_inputs_by_context ON build_inputs (context);

-- Files of contexts, compressed, in the order in which they were first seen.
CREATE TABLE context_listings (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    context  TEXT NOT NULL UNIQUE,
    bytes    INTEGER NOT NULL,
    listing  BLOB NOT NULL
) STRICT;

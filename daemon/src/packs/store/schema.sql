-- Contents, the frames that hold them, and their owners. A row is committed after the bytes that it points to are durable.
CREATE TABLE frames (
    id      INTEGER PRIMARY KEY,
    segment INTEGER NOT NULL,
    -- Offset in the segment, and compressed size.
    start   INTEGER NOT NULL,
    length  INTEGER NOT NULL,
    -- Participant who sent the frame: the first owner of its contents.
    owner   BLOB NOT NULL
) STRICT;
CREATE INDEX frames_by_segment ON frames (segment, start, length);
CREATE TABLE contents (
    -- First half of the content's hash.
    key    BLOB PRIMARY KEY,
    frame  INTEGER NOT NULL,
    -- Offset in the decompressed frame, and size there.
    inside INTEGER NOT NULL,
    size   INTEGER NOT NULL,
    recipe INTEGER NOT NULL,
    -- Time when the content was last asked for, in seconds of the store's clock.
    asked  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX recipes ON contents (key) WHERE recipe;
CREATE INDEX contents_by_frame ON contents (frame, key, inside, size);
-- Additional owners of contents.
CREATE TABLE content_owners (
    key   BLOB NOT NULL REFERENCES contents ON DELETE CASCADE,
    owner BLOB NOT NULL,
    PRIMARY KEY (key, owner)
) STRICT, WITHOUT ROWID;

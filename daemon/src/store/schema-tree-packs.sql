-- Packs of trees instead of images: the module `packs` stores their content in files.
CREATE TABLE tree_packs (
    id         TEXT PRIMARY KEY,
    tree       TEXT NOT NULL,
    lineage    TEXT NOT NULL,
    owner      TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

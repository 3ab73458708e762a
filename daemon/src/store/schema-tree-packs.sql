-- Packs that stand for a tree instead of an image: their content lies in files of the module of packs.
CREATE TABLE tree_packs (
    id         TEXT PRIMARY KEY,
    tree       TEXT NOT NULL,
    lineage    TEXT NOT NULL,
    owner      TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

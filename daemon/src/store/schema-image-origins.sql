-- Origins of images, so that the same image is not created twice. A row is removed with its manifest.
CREATE TABLE image_origins (
    repository TEXT NOT NULL,
    manifest   TEXT NOT NULL,
    owner      TEXT NOT NULL,
    tree       TEXT NOT NULL,
    -- Hash of the settings by which the tree became an image.
    way        TEXT NOT NULL,
    PRIMARY KEY (repository, manifest, owner),
    FOREIGN KEY (repository, manifest) REFERENCES manifests (repository, digest) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX image_origins_by_tree ON image_origins (tree, way, owner);

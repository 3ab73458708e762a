//! Messages of LLB as a table: names, tags and kinds of their fields, from BuildKit's `solver/pb/ops.proto`.
//!
//! Nested builds are not in it, since no build may use them.

/// A message type.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) fields: &'static [Field],
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) tag: u32,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Single,
    Repeated,
    /// Map with text keys.
    Map,
    /// Member of a oneof: BuildKit's JSON has it in an object of this name.
    Grouped(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Bool,
    Signed,
    Unsigned,
    Text,
    Bytes,
    /// Names of the values 0, 1, 2, ...
    Enum(&'static [&'static str]),
    Message(&'static Schema),
}

const fn field(tag: u32, name: &'static str, kind: Kind, shape: Shape) -> Field {
    Field { tag, name, kind, shape }
}

pub(crate) static OP: Schema = Schema {
    fields: &[
        field(1, "inputs", Kind::Message(&INPUT), Shape::Repeated),
        field(2, "exec", Kind::Message(&EXEC_OP), Shape::Grouped("Op")),
        field(3, "source", Kind::Message(&SOURCE_OP), Shape::Grouped("Op")),
        field(4, "file", Kind::Message(&FILE_OP), Shape::Grouped("Op")),
        field(6, "merge", Kind::Message(&MERGE_OP), Shape::Grouped("Op")),
        field(7, "diff", Kind::Message(&DIFF_OP), Shape::Grouped("Op")),
        field(10, "platform", Kind::Message(&PLATFORM), Shape::Single),
        field(11, "constraints", Kind::Message(&WORKER_CONSTRAINTS), Shape::Single),
    ],
};

pub(crate) static PLATFORM: Schema = Schema {
    fields: &[
        field(1, "Architecture", Kind::Text, Shape::Single),
        field(2, "OS", Kind::Text, Shape::Single),
        field(3, "Variant", Kind::Text, Shape::Single),
        field(4, "OSVersion", Kind::Text, Shape::Single),
        field(5, "OSFeatures", Kind::Text, Shape::Repeated),
    ],
};

pub(crate) static INPUT: Schema = Schema {
    fields: &[field(1, "digest", Kind::Text, Shape::Single), field(2, "index", Kind::Signed, Shape::Single)],
};

pub(crate) static EXEC_OP: Schema = Schema {
    fields: &[
        field(1, "meta", Kind::Message(&META), Shape::Single),
        field(2, "mounts", Kind::Message(&MOUNT), Shape::Repeated),
        field(3, "network", Kind::Enum(&["UNSET", "HOST", "NONE"]), Shape::Single),
        field(4, "security", Kind::Enum(&["SANDBOX", "INSECURE"]), Shape::Single),
        field(5, "secretenv", Kind::Message(&SECRET_ENV), Shape::Repeated),
        field(6, "cdiDevices", Kind::Message(&CDI_DEVICE), Shape::Repeated),
    ],
};

pub(crate) static META: Schema = Schema {
    fields: &[
        field(1, "args", Kind::Text, Shape::Repeated),
        field(2, "env", Kind::Text, Shape::Repeated),
        field(3, "cwd", Kind::Text, Shape::Single),
        field(4, "user", Kind::Text, Shape::Single),
        field(5, "proxy_env", Kind::Message(&PROXY_ENV), Shape::Single),
        field(6, "extraHosts", Kind::Message(&HOST_IP), Shape::Repeated),
        field(7, "hostname", Kind::Text, Shape::Single),
        field(9, "ulimit", Kind::Message(&ULIMIT), Shape::Repeated),
        field(10, "cgroupParent", Kind::Text, Shape::Single),
        field(11, "removeMountStubsRecursive", Kind::Bool, Shape::Single),
        field(12, "validExitCodes", Kind::Signed, Shape::Repeated),
    ],
};

pub(crate) static HOST_IP: Schema = Schema {
    fields: &[field(1, "Host", Kind::Text, Shape::Single), field(2, "IP", Kind::Text, Shape::Single)],
};

pub(crate) static ULIMIT: Schema = Schema {
    fields: &[
        field(1, "Name", Kind::Text, Shape::Single),
        field(2, "Soft", Kind::Signed, Shape::Single),
        field(3, "Hard", Kind::Signed, Shape::Single),
    ],
};

pub(crate) static SECRET_ENV: Schema = Schema {
    fields: &[
        field(1, "ID", Kind::Text, Shape::Single),
        field(2, "name", Kind::Text, Shape::Single),
        field(3, "optional", Kind::Bool, Shape::Single),
    ],
};

pub(crate) static CDI_DEVICE: Schema = Schema {
    fields: &[field(1, "name", Kind::Text, Shape::Single), field(2, "optional", Kind::Bool, Shape::Single)],
};

pub(crate) static MOUNT: Schema = Schema {
    fields: &[
        field(1, "input", Kind::Signed, Shape::Single),
        field(2, "selector", Kind::Text, Shape::Single),
        field(3, "dest", Kind::Text, Shape::Single),
        field(4, "output", Kind::Signed, Shape::Single),
        field(5, "readonly", Kind::Bool, Shape::Single),
        field(6, "mountType", Kind::Enum(&["BIND", "SECRET", "SSH", "CACHE", "TMPFS"]), Shape::Single),
        field(19, "TmpfsOpt", Kind::Message(&TMPFS_OPT), Shape::Single),
        field(20, "cacheOpt", Kind::Message(&CACHE_OPT), Shape::Single),
        field(21, "secretOpt", Kind::Message(&SECRET_OPT), Shape::Single),
        field(22, "SSHOpt", Kind::Message(&SSH_OPT), Shape::Single),
        field(23, "resultID", Kind::Text, Shape::Single),
        field(24, "contentCache", Kind::Enum(&["DEFAULT", "ON", "OFF"]), Shape::Single),
    ],
};

pub(crate) static TMPFS_OPT: Schema = Schema { fields: &[field(1, "size", Kind::Signed, Shape::Single)] };

pub(crate) static CACHE_OPT: Schema = Schema {
    fields: &[
        field(1, "ID", Kind::Text, Shape::Single),
        field(2, "sharing", Kind::Enum(&["SHARED", "PRIVATE", "LOCKED"]), Shape::Single),
    ],
};

pub(crate) static SECRET_OPT: Schema = Schema {
    fields: &[
        field(1, "ID", Kind::Text, Shape::Single),
        field(2, "uid", Kind::Unsigned, Shape::Single),
        field(3, "gid", Kind::Unsigned, Shape::Single),
        field(4, "mode", Kind::Unsigned, Shape::Single),
        field(5, "optional", Kind::Bool, Shape::Single),
    ],
};

pub(crate) static SSH_OPT: Schema = Schema {
    fields: &[
        field(1, "ID", Kind::Text, Shape::Single),
        field(2, "uid", Kind::Unsigned, Shape::Single),
        field(3, "gid", Kind::Unsigned, Shape::Single),
        field(4, "mode", Kind::Unsigned, Shape::Single),
        field(5, "optional", Kind::Bool, Shape::Single),
    ],
};

pub(crate) static SOURCE_OP: Schema = Schema {
    fields: &[field(1, "identifier", Kind::Text, Shape::Single), field(2, "attrs", Kind::Text, Shape::Map)],
};

pub(crate) static OP_METADATA: Schema = Schema {
    fields: &[
        field(1, "ignore_cache", Kind::Bool, Shape::Single),
        field(2, "description", Kind::Text, Shape::Map),
        field(4, "export_cache", Kind::Message(&EXPORT_CACHE), Shape::Single),
        field(5, "caps", Kind::Bool, Shape::Map),
        field(6, "progress_group", Kind::Message(&PROGRESS_GROUP), Shape::Single),
    ],
};

pub(crate) static EXPORT_CACHE: Schema = Schema { fields: &[field(1, "Value", Kind::Bool, Shape::Single)] };

pub(crate) static PROGRESS_GROUP: Schema = Schema {
    fields: &[
        field(1, "id", Kind::Text, Shape::Single),
        field(2, "name", Kind::Text, Shape::Single),
        field(3, "weak", Kind::Bool, Shape::Single),
    ],
};

pub(crate) static PROXY_ENV: Schema = Schema {
    fields: &[
        field(1, "http_proxy", Kind::Text, Shape::Single),
        field(2, "https_proxy", Kind::Text, Shape::Single),
        field(3, "ftp_proxy", Kind::Text, Shape::Single),
        field(4, "no_proxy", Kind::Text, Shape::Single),
        field(5, "all_proxy", Kind::Text, Shape::Single),
    ],
};

pub(crate) static WORKER_CONSTRAINTS: Schema =
    Schema { fields: &[field(1, "filter", Kind::Text, Shape::Repeated)] };

pub(crate) static FILE_OP: Schema =
    Schema { fields: &[field(2, "actions", Kind::Message(&FILE_ACTION), Shape::Repeated)] };

pub(crate) static FILE_ACTION: Schema = Schema {
    fields: &[
        field(1, "input", Kind::Signed, Shape::Single),
        field(2, "secondaryInput", Kind::Signed, Shape::Single),
        field(3, "output", Kind::Signed, Shape::Single),
        field(4, "copy", Kind::Message(&FILE_ACTION_COPY), Shape::Grouped("Action")),
        field(5, "mkfile", Kind::Message(&FILE_ACTION_MK_FILE), Shape::Grouped("Action")),
        field(6, "mkdir", Kind::Message(&FILE_ACTION_MK_DIR), Shape::Grouped("Action")),
        field(7, "rm", Kind::Message(&FILE_ACTION_RM), Shape::Grouped("Action")),
        field(8, "symlink", Kind::Message(&FILE_ACTION_SYMLINK), Shape::Grouped("Action")),
    ],
};

pub(crate) static FILE_ACTION_COPY: Schema = Schema {
    fields: &[
        field(1, "src", Kind::Text, Shape::Single),
        field(2, "dest", Kind::Text, Shape::Single),
        field(3, "owner", Kind::Message(&CHOWN_OPT), Shape::Single),
        field(4, "mode", Kind::Signed, Shape::Single),
        field(5, "followSymlink", Kind::Bool, Shape::Single),
        field(6, "dirCopyContents", Kind::Bool, Shape::Single),
        field(7, "attemptUnpackDockerCompatibility", Kind::Bool, Shape::Single),
        field(8, "createDestPath", Kind::Bool, Shape::Single),
        field(9, "allowWildcard", Kind::Bool, Shape::Single),
        field(10, "allowEmptyWildcard", Kind::Bool, Shape::Single),
        field(11, "timestamp", Kind::Signed, Shape::Single),
        field(12, "include_patterns", Kind::Text, Shape::Repeated),
        field(13, "exclude_patterns", Kind::Text, Shape::Repeated),
        field(14, "alwaysReplaceExistingDestPaths", Kind::Bool, Shape::Single),
        field(15, "modeStr", Kind::Text, Shape::Single),
        field(16, "required_paths", Kind::Text, Shape::Repeated),
    ],
};

pub(crate) static FILE_ACTION_MK_FILE: Schema = Schema {
    fields: &[
        field(1, "path", Kind::Text, Shape::Single),
        field(2, "mode", Kind::Signed, Shape::Single),
        field(3, "data", Kind::Bytes, Shape::Single),
        field(4, "owner", Kind::Message(&CHOWN_OPT), Shape::Single),
        field(5, "timestamp", Kind::Signed, Shape::Single),
    ],
};

pub(crate) static FILE_ACTION_SYMLINK: Schema = Schema {
    fields: &[
        field(1, "oldpath", Kind::Text, Shape::Single),
        field(2, "newpath", Kind::Text, Shape::Single),
        field(3, "owner", Kind::Message(&CHOWN_OPT), Shape::Single),
        field(4, "timestamp", Kind::Signed, Shape::Single),
    ],
};

pub(crate) static FILE_ACTION_MK_DIR: Schema = Schema {
    fields: &[
        field(1, "path", Kind::Text, Shape::Single),
        field(2, "mode", Kind::Signed, Shape::Single),
        field(3, "makeParents", Kind::Bool, Shape::Single),
        field(4, "owner", Kind::Message(&CHOWN_OPT), Shape::Single),
        field(5, "timestamp", Kind::Signed, Shape::Single),
    ],
};

pub(crate) static FILE_ACTION_RM: Schema = Schema {
    fields: &[
        field(1, "path", Kind::Text, Shape::Single),
        field(2, "allowNotFound", Kind::Bool, Shape::Single),
        field(3, "allowWildcard", Kind::Bool, Shape::Single),
    ],
};

pub(crate) static CHOWN_OPT: Schema = Schema {
    fields: &[
        field(1, "user", Kind::Message(&USER_OPT), Shape::Single),
        field(2, "group", Kind::Message(&USER_OPT), Shape::Single),
    ],
};

pub(crate) static USER_OPT: Schema = Schema {
    fields: &[
        field(1, "byName", Kind::Message(&NAMED_USER_OPT), Shape::Grouped("User")),
        field(2, "byID", Kind::Unsigned, Shape::Grouped("User")),
    ],
};

pub(crate) static NAMED_USER_OPT: Schema = Schema {
    fields: &[field(1, "name", Kind::Text, Shape::Single), field(2, "input", Kind::Signed, Shape::Single)],
};

pub(crate) static MERGE_INPUT: Schema = Schema { fields: &[field(1, "input", Kind::Signed, Shape::Single)] };

pub(crate) static MERGE_OP: Schema =
    Schema { fields: &[field(1, "inputs", Kind::Message(&MERGE_INPUT), Shape::Repeated)] };

pub(crate) static LOWER_DIFF_INPUT: Schema =
    Schema { fields: &[field(1, "input", Kind::Signed, Shape::Single)] };

pub(crate) static UPPER_DIFF_INPUT: Schema =
    Schema { fields: &[field(1, "input", Kind::Signed, Shape::Single)] };

pub(crate) static DIFF_OP: Schema = Schema {
    fields: &[
        field(1, "lower", Kind::Message(&LOWER_DIFF_INPUT), Shape::Single),
        field(2, "upper", Kind::Message(&UPPER_DIFF_INPUT), Shape::Single),
    ],
};

/// A definition without the files that it comes from; its operations are encoded.
pub(crate) static DEFINITION: Schema = Schema {
    fields: &[
        field(1, "def", Kind::Bytes, Shape::Repeated),
        field(2, "metadata", Kind::Message(&OP_METADATA), Shape::Map),
        field(3, "Source", Kind::Message(&SOURCE), Shape::Single),
    ],
};

static SOURCE: Schema = Schema {
    fields: &[
        field(1, "locations", Kind::Message(&LOCATIONS), Shape::Map),
        field(2, "infos", Kind::Message(&SOURCE_INFO), Shape::Repeated),
    ],
};

static LOCATIONS: Schema =
    Schema { fields: &[field(1, "locations", Kind::Message(&LOCATION), Shape::Repeated)] };

static LOCATION: Schema = Schema {
    fields: &[
        field(1, "sourceIndex", Kind::Signed, Shape::Single),
        field(2, "ranges", Kind::Message(&RANGE), Shape::Repeated),
    ],
};

static RANGE: Schema = Schema {
    fields: &[
        field(1, "start", Kind::Message(&POSITION), Shape::Single),
        field(2, "end", Kind::Message(&POSITION), Shape::Single),
    ],
};

static POSITION: Schema = Schema {
    fields: &[
        field(1, "line", Kind::Signed, Shape::Single),
        field(2, "character", Kind::Signed, Shape::Single),
    ],
};

static SOURCE_INFO: Schema = Schema {
    fields: &[
        field(1, "filename", Kind::Text, Shape::Single),
        field(2, "data", Kind::Bytes, Shape::Single),
        field(4, "language", Kind::Text, Shape::Single),
    ],
};

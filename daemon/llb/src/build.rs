//! Building of graphs: one method for each kind of operation, which returns its output.

use bollard_buildkit_proto::pb;
use pb::op::Op;

use crate::graph::{Graph, Output};

/// Index of a mount or action without input, and of a mount without output.
const NONE: i64 = -1;
/// Label under which BuildKit shows an operation.
const NAME: &str = "llb.customname";

/// A command on a root file system.
#[derive(Clone, Debug, Default)]
pub struct Command {
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Empty means `/`.
    pub workdir: String,
    pub user: String,
    pub hostname: String,
    pub mounts: Vec<Mount>,
    pub secret_env: Vec<SecretVariable>,
    pub without_network: bool,
}

#[derive(Clone, Debug)]
pub struct Mount {
    /// Absolute path.
    pub target: String,
    pub read_only: bool,
    pub kind: MountKind,
}

#[derive(Clone, Debug)]
pub enum MountKind {
    /// A path of an output; without one, an empty directory. A writable one is an output of the command.
    Bind {
        from: Option<Output>,
        path: String,
    },
    Cache {
        id: String,
        sharing: CacheSharing,
        from: Option<Output>,
    },
    /// Zero means without a limit.
    Tmpfs {
        size_bytes: i64,
    },
    Secret {
        id: String,
        mode: u32,
        optional: bool,
    },
    Ssh {
        id: String,
        mode: u32,
        optional: bool,
    },
}

/// How commands that run at the same time use one cache mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheSharing {
    #[default]
    Shared,
    Private,
    /// One command at a time.
    Locked,
}

/// A secret in the environment of a command.
#[derive(Clone, Debug)]
pub struct SecretVariable {
    pub id: String,
    pub name: String,
    pub optional: bool,
}

/// Outputs of a command.
#[derive(Clone, Debug)]
pub struct ExecOutputs {
    pub root: Output,
    /// Output of each mount, in their order; `None` for those that are not written to an output.
    pub mounts: Vec<Option<Output>>,
}

#[derive(Clone, Debug)]
pub struct GitSource<'a> {
    /// `https://host/path`.
    pub url: &'a str,
    /// `ref` or `ref:directory`; empty for the default branch.
    pub fragment: &'a str,
    pub keep_git_dir: bool,
}

/// One step of a file operation; the steps of one operation apply to one tree, in their order.
#[derive(Clone, Debug)]
pub enum FileAction {
    Copy(CopyFiles),
    Mkdir { path: String, mode: i32, parents: bool },
    Mkfile { path: String, mode: i32, data: Vec<u8> },
    Remove { path: String, allow_missing: bool, wildcard: bool },
    Symlink { old: String, new: String },
}

#[derive(Clone, Debug)]
pub struct CopyFiles {
    pub from: Output,
    pub source: String,
    pub target: String,
    /// Copies what a directory contains, not the directory.
    pub contents: bool,
    /// Files get this owner; without it they keep theirs.
    pub owner: Option<(u32, u32)>,
    pub exclude: Vec<String>,
}

impl Graph {
    fn source(&mut self, identifier: String, attrs: &[(&str, String)]) -> Output {
        let attrs = attrs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.push(Op::Source(pb::SourceOp { identifier, attrs }), Vec::new())
    }

    /// An image, by its full name.
    pub fn image(&mut self, name: &str) -> Output {
        self.source(format!("docker-image://{name}"), &[])
    }

    /// Files of a session. `name` is `context` for those of a build.
    pub fn local(&mut self, name: &str) -> Output {
        self.source(format!("local://{name}"), &[])
    }

    /// A repository.
    pub fn git(&mut self, from: &GitSource<'_>) -> Output {
        let name = from.url.split_once("://").map_or(from.url, |(_, rest)| rest);
        let fragment = if from.fragment.is_empty() { String::new() } else { format!("#{}", from.fragment) };
        let mut attributes = vec![("git.fullurl", from.url.to_owned())];
        if from.keep_git_dir {
            attributes.push(("git.keepgitdir", "true".to_owned()));
        }
        self.source(format!("git://{name}{fragment}"), &attributes)
    }

    /// A file, by its URL.
    pub fn http(&mut self, url: &str, checksum: Option<&str>) -> Output {
        let checksum = checksum.map(|digest| ("http.checksum", digest.to_owned()));
        self.source(url.to_owned(), checksum.as_slice())
    }

    /// Runs a command on a root; without one, the root is empty.
    pub fn exec(&mut self, root: Option<Output>, command: Command) -> ExecOutputs {
        let mut inputs = Vec::new();
        let mut outputs = 1;
        let root_mount = pb::Mount {
            input: input_index(&mut inputs, root),
            dest: "/".to_owned(),
            output: 0,
            ..pb::Mount::default()
        };
        let mut mounts = vec![root_mount];
        let mut written = Vec::new();
        for mount in command.mounts {
            let (made, output) = mount_of(mount, &mut inputs, &mut outputs);
            mounts.push(made);
            written.push(output);
        }
        let secret = |secret: SecretVariable| pb::SecretEnv {
            id: secret.id,
            name: secret.name,
            optional: secret.optional,
        };
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: command.args,
                env: command.env,
                cwd: if command.workdir.is_empty() { "/".to_owned() } else { command.workdir },
                user: command.user,
                hostname: command.hostname,
                remove_mount_stubs_recursive: true,
                ..pb::Meta::default()
            }),
            mounts,
            network: if command.without_network { pb::NetMode::None } else { pb::NetMode::Unset }.into(),
            secretenv: command.secret_env.into_iter().map(secret).collect(),
            ..pb::ExecOp::default()
        };
        let root = self.push(Op::Exec(exec), inputs);
        let at = |index: i64| Output { operation: root.operation, index };
        ExecOutputs { root, mounts: written.into_iter().map(|output| output.map(at)).collect() }
    }

    /// Changes files of a tree; without one, the tree is empty.
    pub fn file(&mut self, tree: Option<Output>, actions: Vec<FileAction>) -> Output {
        let mut inputs = Vec::new();
        let first = input_index(&mut inputs, tree);
        let trees: Vec<i64> = actions
            .iter()
            .map(|action| match action {
                FileAction::Copy(copy) => input_index(&mut inputs, Some(copy.from)),
                _ => NONE,
            })
            .collect();
        let count = actions.len();
        // Results of actions are counted after the inputs.
        let result = |index: usize| i64::try_from(inputs.len() + index).unwrap_or(i64::MAX);
        let actions =
            actions.into_iter().zip(trees).enumerate().map(|(index, (action, from))| pb::FileAction {
                input: if index == 0 { first } else { result(index - 1) },
                secondary_input: from,
                output: if index + 1 == count { 0 } else { NONE },
                action: Some(action_of(action)),
            });
        let actions = actions.collect();
        self.push(Op::File(pb::FileOp { actions }), inputs)
    }

    /// Lays trees over each other, the first one lowest.
    pub fn merge(&mut self, trees: &[Output]) -> Output {
        let inputs =
            (0..trees.len()).map(|index| pb::MergeInput { input: i64::try_from(index).unwrap_or(0) });
        let merge = pb::MergeOp { inputs: inputs.collect() };
        self.push(Op::Merge(merge), trees.to_vec())
    }

    /// What changed from one tree to another; `None` is the empty tree.
    pub fn diff(&mut self, lower: Option<Output>, upper: Option<Output>) -> Output {
        let mut inputs = Vec::new();
        let diff = pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: input_index(&mut inputs, lower) }),
            upper: Some(pb::UpperDiffInput { input: input_index(&mut inputs, upper) }),
        };
        self.push(Op::Diff(diff), inputs)
    }

    /// Gives the operation of an output the name that progress shows.
    pub fn set_name(&mut self, of: Output, name: &str) {
        let description = &mut self.operations[of.operation].metadata.description;
        description.insert(NAME.to_owned(), name.to_owned());
    }

    /// Shows the operation of an output as part of a group.
    pub fn set_group(&mut self, of: Output, id: &str, name: &str) {
        let group = pb::ProgressGroup { id: id.to_owned(), name: name.to_owned(), weak: false };
        self.operations[of.operation].metadata.progress_group = Some(group);
    }

    /// Sets the platform of the operation of an output.
    pub fn set_platform(&mut self, of: Output, os: &str, architecture: &str, variant: &str) {
        self.operations[of.operation].op.platform = Some(pb::Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..pb::Platform::default()
        });
    }

    /// Runs the operation of an output again even when it is cached.
    pub fn ignore_cache(&mut self, of: Output) {
        self.operations[of.operation].metadata.ignore_cache = true;
    }

    pub fn set_result(&mut self, result: Output) {
        self.result = Some(result);
    }
}

/// Returns the index of an input, which is added if it is new.
fn input_index(inputs: &mut Vec<Output>, of: Option<Output>) -> i64 {
    let Some(output) = of else { return NONE };
    let index = inputs.iter().position(|known| *known == output).unwrap_or_else(|| {
        inputs.push(output);
        inputs.len() - 1
    });
    i64::try_from(index).unwrap_or(NONE)
}

fn mount_of(mount: Mount, inputs: &mut Vec<Output>, outputs: &mut i64) -> (pb::Mount, Option<i64>) {
    let Mount { target, read_only, kind } = mount;
    let base =
        pb::Mount { input: NONE, dest: target, output: NONE, readonly: read_only, ..pb::Mount::default() };
    let of_kind = |kind: pb::MountType| pb::Mount { mount_type: kind.into(), ..base.clone() };
    match kind {
        MountKind::Bind { from, path } => {
            let output = (!read_only).then_some(*outputs);
            *outputs += i64::from(!read_only);
            let input = input_index(inputs, from);
            (pb::Mount { input, selector: path, output: output.unwrap_or(NONE), ..base }, output)
        }
        MountKind::Cache { id, sharing, from } => {
            let sharing = match sharing {
                CacheSharing::Shared => pb::CacheSharingOpt::Shared,
                CacheSharing::Private => pb::CacheSharingOpt::Private,
                CacheSharing::Locked => pb::CacheSharingOpt::Locked,
            };
            let cache_opt = Some(pb::CacheOpt { id, sharing: sharing.into() });
            (pb::Mount { input: input_index(inputs, from), cache_opt, ..of_kind(pb::MountType::Cache) }, None)
        }
        MountKind::Tmpfs { size_bytes } => {
            let tmpfs_opt = Some(pb::TmpfsOpt { size: size_bytes });
            (pb::Mount { tmpfs_opt, ..of_kind(pb::MountType::Tmpfs) }, None)
        }
        MountKind::Secret { id, mode, optional } => {
            let secret_opt = Some(pb::SecretOpt { id, mode, optional, ..pb::SecretOpt::default() });
            (pb::Mount { secret_opt, ..of_kind(pb::MountType::Secret) }, None)
        }
        MountKind::Ssh { id, mode, optional } => {
            let ssh_opt = Some(pb::SshOpt { id, mode, optional, ..pb::SshOpt::default() });
            (pb::Mount { ssh_opt, ..of_kind(pb::MountType::Ssh) }, None)
        }
    }
}

fn action_of(action: FileAction) -> pb::file_action::Action {
    use pb::file_action::Action;
    // The time of what is made is that of the operation.
    let timestamp = NONE;
    match action {
        FileAction::Copy(copy) => Action::Copy(pb::FileActionCopy {
            src: copy.source,
            dest: copy.target,
            owner: copy.owner.map(|(user, group)| pb::ChownOpt { user: id_of(user), group: id_of(group) }),
            mode: -1,
            follow_symlink: false,
            dir_copy_contents: copy.contents,
            create_dest_path: true,
            allow_wildcard: false,
            timestamp,
            exclude_patterns: copy.exclude,
            ..pb::FileActionCopy::default()
        }),
        FileAction::Mkdir { path, mode, parents } => {
            Action::Mkdir(pb::FileActionMkDir { path, mode, make_parents: parents, owner: None, timestamp })
        }
        FileAction::Mkfile { path, mode, data } => {
            Action::Mkfile(pb::FileActionMkFile { path, mode, data, owner: None, timestamp })
        }
        FileAction::Remove { path, allow_missing, wildcard } => {
            Action::Rm(pb::FileActionRm { path, allow_not_found: allow_missing, allow_wildcard: wildcard })
        }
        FileAction::Symlink { old, new } => {
            Action::Symlink(pb::FileActionSymlink { oldpath: old, newpath: new, owner: None, timestamp })
        }
    }
}

fn id_of(id: u32) -> Option<pb::UserOpt> {
    Some(pb::UserOpt { user: Some(pb::user_opt::User::ById(id)) })
}

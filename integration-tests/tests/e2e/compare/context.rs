//! One context of the comparison: its files, and the build options for each side.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

/// A function that writes files into an empty directory.
pub type Plant = fn(&Path);

pub const COPY_ALL: &str = "FROM scratch\nCOPY . /all/\n";

/// Sources with a pack that can carry a context.
#[derive(Clone, Copy, PartialEq)]
pub enum Packs {
    All,
    /// `hearth build --pack` knows which Dockerfile is meant; a pack made before the build does not.
    SentOnly,
    /// The content is refused by every pack, by contract.
    None,
}

pub struct Context {
    /// Directory in room storage, and name of the image.
    pub name: &'static str,
    pub plant: Plant,
    pub dockerfile: &'static str,
    /// Path at which the Dockerfile is written, below the context directory.
    dockerfile_path: &'static str,
    /// Value of `--dockerfile-path`, when the default would not find the Dockerfile.
    dockerfile_flag: Option<&'static str>,
    /// Value of `--context-path`.
    pub path: &'static str,
    /// Additional mounts: absolute target and files.
    pub mounts: Vec<(&'static str, Plant)>,
    /// Options as buildctl takes them: `build-arg:K=V`, `target=S`.
    options: Vec<&'static str>,
    pub packs: Packs,
    /// The image has times that are not the context's, such as those in a tar that ADD unpacks.
    pub has_times_of_its_own: bool,
    /// Both sides refuse to build the context.
    pub refused: bool,
}

pub fn context(name: &'static str, dockerfile: &'static str, plant: Plant) -> Context {
    Context {
        name,
        plant,
        dockerfile,
        dockerfile_path: "Dockerfile",
        dockerfile_flag: None,
        path: "/context",
        mounts: Vec::new(),
        options: Vec::new(),
        packs: Packs::All,
        has_times_of_its_own: false,
        refused: false,
    }
}

impl Context {
    /// Writes the Dockerfile at this path, where hearth finds it without an option.
    pub fn found_at(mut self, path: &'static str) -> Self {
        self.dockerfile_path = path;
        self
    }

    /// Writes the Dockerfile at this path, and passes the absolute path to hearth.
    pub fn dockerfile_at(mut self, path: &'static str, absolute: &'static str) -> Self {
        (self.dockerfile_path, self.dockerfile_flag) = (path, Some(absolute));
        self
    }

    pub fn at(mut self, context_path: &'static str) -> Self {
        self.path = context_path;
        self
    }

    pub fn mount(mut self, target: &'static str, plant: Plant) -> Self {
        self.mounts.push((target, plant));
        self
    }

    pub fn option(mut self, option: &'static str) -> Self {
        self.options.push(option);
        self
    }

    pub fn packs(mut self, packs: Packs) -> Self {
        self.packs = packs;
        self
    }

    pub fn times_of_its_own(mut self) -> Self {
        self.has_times_of_its_own = true;
        self
    }

    pub fn refused(mut self) -> Self {
        self.refused = true;
        self
    }

    /// Returns the directory of an additional mount, in room storage.
    pub fn mounted(&self, target: &str) -> String {
        format!("{}{}", self.name, target.replace('/', "-"))
    }

    /// Writes the trees of all mounts.
    pub fn write(&self, storage: &Path) {
        let main = storage.join(self.name);
        fs::create_dir_all(&main).unwrap();
        (self.plant)(&main);
        for (target, plant) in &self.mounts {
            let directory = storage.join(self.mounted(target));
            fs::create_dir_all(&directory).unwrap();
            plant(&directory);
            age(&directory);
        }
        // A Dockerfile in another mount is written by that mount's own function.
        if !self.dockerfile_path.is_empty() {
            let path = main.join(self.dockerfile_path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, self.dockerfile).unwrap();
        }
        age(&main);
    }

    /// Returns the context directory and the Dockerfile's directory for buildctl, which has no mounts: they are merged.
    pub fn for_buildctl(&self, storage: &Path) -> (PathBuf, PathBuf) {
        let mut top = storage.join(self.name);
        if !self.mounts.is_empty() {
            let merged = storage.join(format!("{}-merged", self.name));
            super::copy_exactly(&top, &merged);
            for (target, _) in &self.mounts {
                let Some(below) = target.strip_prefix("/context/") else { continue };
                lay_over(&merged, below, &storage.join(self.mounted(target)));
            }
            top = merged;
        }
        let in_context = |path: &str| match path.strip_prefix("/context") {
            Some(below) => top.join(below.trim_start_matches('/')),
            None => storage.join(self.mounted(path)),
        };
        let dockerfile = match self.dockerfile_flag {
            Some(path) => in_context(path.rsplit_once('/').unwrap().0),
            None => in_context(self.path),
        };
        (in_context(self.path), dockerfile)
    }

    fn dockerfile_name(&self) -> &str {
        self.dockerfile_flag.unwrap_or(self.dockerfile_path).rsplit('/').next().unwrap()
    }

    pub fn buildctl_options(&self) -> Vec<String> {
        let mut options = vec!["no-cache=".to_owned(), format!("filename={}", self.dockerfile_name())];
        options.extend(self.options.iter().map(ToString::to_string));
        options
    }

    pub fn hearth_options(&self) -> Vec<String> {
        let mut flags = Vec::new();
        if let Some(path) = self.dockerfile_flag {
            flags.extend(["--dockerfile-path".to_owned(), path.to_owned()]);
        }
        for option in &self.options {
            match option.split_once([':', '=']).unwrap() {
                ("build-arg", value) => flags.extend(["--build-arg".to_owned(), value.to_owned()]),
                ("target", value) => flags.extend(["--target".to_owned(), value.to_owned()]),
                _ => panic!("no flag of hearth is known for {option}"),
            }
        }
        flags
    }
}

/// Puts a tree at a path of another tree as a mount does: existing content is hidden, missing parents are created with
/// mode 0755 and time 0, and existing parents keep their times.
fn lay_over(top: &Path, below: &str, tree: &Path) {
    let target = top.join(below);
    let mut parent = top.to_owned();
    let mut times = vec![(parent.clone(), fs::metadata(top).unwrap().mtime())];
    for name in Path::new(below).parent().unwrap() {
        parent.push(name);
        match fs::symlink_metadata(&parent) {
            Ok(meta) if meta.is_dir() => times.push((parent.clone(), meta.mtime())),
            found => {
                if found.is_ok() {
                    fs::remove_file(&parent).unwrap();
                }
                fs::create_dir(&parent).unwrap();
                fs::set_permissions(&parent, fs::Permissions::from_mode(0o755)).unwrap();
                times.push((parent.clone(), 0));
            }
        }
    }
    match fs::symlink_metadata(&target) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&target).unwrap(),
        Ok(_) => fs::remove_file(&target).unwrap(),
        Err(_) => {}
    }
    super::copy_exactly(tree, &target);
    for (path, time) in times.iter().rev() {
        set_time(path, *time);
    }
}

/// Gives every entry a time of its own, long ago, unless it has such a time already.
fn age(top: &Path) {
    fn walk(path: &Path, count: &mut i64) {
        let meta = fs::symlink_metadata(path).unwrap();
        *count += 1;
        let time = 1_000_000_000 + *count * 1000;
        if meta.is_dir() {
            let mut names: Vec<PathBuf> =
                fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            names.iter().for_each(|path| walk(path, count));
        }
        const LONG_AGO: i64 = 1_700_000_000;
        if meta.mtime() > LONG_AGO {
            set_time(path, time);
        }
    }
    walk(top, &mut 0);
}

pub fn set_time(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

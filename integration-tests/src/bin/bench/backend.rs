//! This program in its mode `--serve`, as a service of the room.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use integration_tests::process;
use integration_tests::service::{App, PORT};
use integration_tests::wait::seconds;

use super::load::Target;
use super::side::Bench;

const IMAGE: &str = "bench-serve:1";
const PROGRAM: &str = "bench/serve";

pub struct Backend {
    name: String,
}

impl Backend {
    pub fn start(bench: &Bench, name: &str) -> Self {
        static PACKED: OnceLock<()> = OnceLock::new();
        PACKED.get_or_init(|| pack(bench));
        let backend = Self { name: name.to_owned() };
        let host = backend.host();
        bench.hearth(&["deploy", "--tag", IMAGE, "--name", name, "--domain", &host, "--public"]);
        backend
    }

    pub fn image(&self) -> &str {
        IMAGE
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn host(&self) -> String {
        format!("{}.test", self.name)
    }

    pub fn through_ingress(&self, bench: &Bench) -> Target {
        Target { address: bench.daemon.ingress(), host: self.host() }
    }

    /// Returns the address of the instance itself, without the ingress.
    pub fn direct(&self, bench: &Bench) -> Target {
        let shown = bench.hearth(&["services", "show", &self.name, "--json"]).json();
        let instances = shown["instances"].as_array().expect("instances");
        let routed =
            instances.iter().find(|instance| instance["routed"] == true).expect("an instance with traffic");
        let address = routed["address"].as_str().expect("its address");
        Target { address: format!("{address}:{PORT}"), host: self.host() }
    }

    pub fn remove(&self, bench: &Bench) {
        bench.hearth(&["services", "rm", "--now", &self.name]);
    }
}

/// Packs the program and its shared libraries onto the base image.
fn pack(bench: &Bench) {
    let own = env::current_exe().expect("own executable");
    let command = format!("trap 'exit 0' TERM; /{PROGRAM} --serve {PORT} & wait");
    let mut app = App::script(&command)
        .with(&["--expose", PORT])
        .program(PROGRAM, fs::read(&own).expect("own executable"));
    for library in libraries(&own) {
        app = app.program(library.trim_start_matches('/'), fs::read(&library).expect("a library"));
    }
    app.pack(&bench.daemon, IMAGE);
}

/// Returns the paths where the program looks for its shared libraries. A static program has none.
fn libraries(program: &Path) -> Vec<String> {
    let output = process::run(Command::new("ldd").arg(program), seconds(10));
    output.stdout.split_whitespace().filter(|word| word.starts_with('/')).map(ToOwned::to_owned).collect()
}

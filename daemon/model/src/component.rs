/// Status of a component that must work before the daemon accepts a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentStatus {
    pub name: &'static str,
    pub ready: bool,
    /// Version if ready; otherwise the problem and its remedy.
    pub detail: String,
}

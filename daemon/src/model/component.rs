/// Something that must work before a build is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    pub name: &'static str,
    pub ready: bool,
    /// Version when ready; what is wrong, and what to do, when not.
    pub detail: String,
}

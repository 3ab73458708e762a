//! Finds every path that a source file names, and makes each absolute.

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, UseTree};

/// A path in a source file, such as `crate::model::Digest` or `hearth_proto::v1`.
#[derive(Debug, PartialEq, Eq)]
pub struct NamedPath {
    /// Segments; the first one is `crate`, or the first word of a path outside of this crate, as written.
    pub segments: Vec<String>,
    /// Line number, counted from 1.
    pub line: usize,
}

/// Returns the paths of a file that is the module `module` of its crate (empty for the root), in code that is compiled
/// outside of tests. Groups of `use` are split, `self` and `super` are resolved, and macro calls are searched.
pub fn named_paths(source: &str, module: &[String]) -> syn::Result<Vec<NamedPath>> {
    let file = syn::parse_file(source)?;
    let mut finder = Finder { module: module.to_vec(), found: Vec::new() };
    finder.visit_file(&file);
    Ok(finder.found)
}

struct Finder {
    module: Vec<String>,
    found: Vec<NamedPath>,
}

impl Finder {
    fn note(&mut self, path: &[&Ident]) {
        let Some(first) = path.first() else { return };
        let line = first.span().start().line;
        let words: Vec<String> = path.iter().map(ToString::to_string).collect();
        let ups = words.iter().take_while(|word| *word == "super").count();
        let (base, rest) = match words[0].as_str() {
            "crate" => (&[][..], &words[1..]),
            "self" => {
                let ups = words[1..].iter().take_while(|word| *word == "super").count();
                (self.above(ups), &words[1 + ups..])
            }
            "super" => (self.above(ups), &words[ups..]),
            _ => {
                self.found.push(NamedPath { segments: words, line });
                return;
            }
        };
        let segments = std::iter::once("crate".to_owned()).chain([base, rest].concat()).collect();
        self.found.push(NamedPath { segments, line });
    }

    fn above(&self, levels: usize) -> &[String] {
        &self.module[..self.module.len().saturating_sub(levels)]
    }

    fn tree<'t>(&mut self, tree: &'t UseTree, before: &mut Vec<&'t Ident>) {
        match tree {
            UseTree::Path(path) => {
                before.push(&path.ident);
                self.tree(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => self.leaf(&name.ident, before),
            UseTree::Rename(rename) => self.leaf(&rename.ident, before),
            UseTree::Glob(_) => self.note(before),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before)),
        }
    }

    fn leaf<'t>(&mut self, name: &'t Ident, before: &mut Vec<&'t Ident>) {
        if name == "self" && !before.is_empty() {
            return self.note(before);
        }
        before.push(name);
        self.note(before);
        before.pop();
    }

    /// Finds words that `::` joins, anywhere in the tokens of a macro call.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<Ident> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => {
                    path.push(ident);
                    colons = 0;
                }
                TokenTree::Ident(ident) => {
                    self.joined(&path);
                    path = vec![ident];
                    colons = 0;
                }
                other => {
                    self.joined(&path);
                    path.clear();
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.joined(&path);
    }

    fn joined(&mut self, path: &[Ident]) {
        if path.len() > 1 {
            self.note(&path.iter().collect::<Vec<_>>());
        }
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !attributes(item).iter().any(is_for_tests) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.note(&path.segments.iter().map(|segment| &segment.ident).collect::<Vec<_>>());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        visit::visit_macro(self, call);
        self.tokens(call.tokens.clone());
    }
}

fn attributes(item: &syn::Item) -> &[Attribute] {
    use syn::Item;
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_for_tests(attribute: &Attribute) -> bool {
    let mut test = false;
    if attribute.path().is_ident("cfg") {
        // `any(test, ..)` is compiled outside of tests too, and does not count.
        let _ = attribute.parse_nested_meta(|meta| {
            test |= meta.path.is_ident("test");
            Ok(())
        });
    }
    test
}

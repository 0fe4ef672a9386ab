//! The imports of each crate form no circle, and go downwards only between its top-level modules.
//!
//! archaven finds the imports in the sources. A module and its own children may import each other. Code of tests does
//! not count: `tests.rs`, `tests/`, `x_tests.rs`, and lines after the first `#[cfg(test)]` of a file.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use archaven::{
    Archaven, ArchavenError, Dependency, DependencyGraph, Location, RuleSet, Violations,
};
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

/// Top-level modules from top to bottom. Those in one row do not import each other.
type Layers = &'static [&'static [&'static str]];

const CRATES: &[(&str, Layers)] = &[
    (
        "launcher/src",
        &[
            &["error", "health"],
            &["supervisor", "tools"],
            &["launch"],
            &["machine", "model"],
            &["process"],
            &["logs"],
        ],
    ),
    (
        "router/src",
        &[
            &["bin"],
            &["server"],
            &["openapi", "docs"],
            &["api"],
            &["http"],
            &["state"],
            &["config"],
            &["tool_calls"],
            &["generation", "encoder", "chat_template", "supervision"],
            &["grammar", "encryption"],
            &["tokenizing", "connections"],
            &["error", "api_keys", "stored_responses", "running_requests"],
            &["observability"],
        ],
    ),
    (
        "router/engine/src",
        &[
            &["bench"],
            &["engine", "encoder"],
            &["lifecycle", "scheduler"],
            &["sequence", "metrics"],
            &["backlog", "cache", "content", "shard", "token_table"],
            &["request"],
            &["permits"],
            &["tenant", "shares"],
            &["error"],
        ],
    ),
    ("router/edge/src", &[&["tls", "api_key_file"], &["file"]]),
    (
        "settings/src",
        &[
            &["page", "router", "shard", "validate", "parse", "commands"],
            &["cli", "rewrite"],
            &["flags"],
            &["values", "generated", "open_files"],
        ],
    ),
    ("model-files/src", &[]),
    ("testing/src", &[&["shard"], &["sequences"]]),
    ("benchmarks/router-overhead/src", &[]),
];

/// An import of one module by another, as paths below the crate's root.
struct Import {
    importer: Vec<String>,
    imported: Vec<String>,
    place: String,
}

/// Hands out what archaven finds.
struct Collector(Rc<RefCell<Vec<Dependency>>>);

impl RuleSet for Collector {
    fn check(&self, graph: &DependencyGraph) -> Result<Violations, ArchavenError> {
        self.0.borrow_mut().extend_from_slice(graph.dependencies());
        Ok(Violations::new())
    }
}

fn imports(sources: &Path) -> Vec<Import> {
    let found = Rc::new(RefCell::new(Vec::new()));
    Archaven::new()
        .rule(Collector(Rc::clone(&found)))
        .check(sources)
        .expect("sources that can be parsed");
    let modules = modules(sources);
    let mut texts: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut imports = Vec::new();
    for dependency in found.borrow().iter() {
        let location = dependency.location();
        let file = location.file();
        let text = texts
            .entry(file.to_owned())
            .or_insert_with(|| fs::read_to_string(file).expect("a source file"));
        if holds_tests(file) || !counts(text, location) {
            continue;
        }
        let mut imported = dependency.target().segments().to_vec();
        while !modules.contains(&imported) {
            imported.pop();
        }
        imports.push(Import {
            importer: dependency.source().segments().to_vec(),
            imported,
            place: format!("{}:{}", file.display(), location.line().unwrap_or(0)),
        });
    }
    imports
}

/// Paths of all modules, that of the root included.
fn modules(sources: &Path) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::from([Vec::new()]);
    let mut folders = vec![(sources.to_owned(), Vec::new())];
    while let Some((folder, parent)) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy();
            let mut module: Vec<String> = parent.clone();
            module.push(name.into_owned());
            if path.is_dir() {
                folders.push((path, module.clone()));
            }
            found.insert(module);
        }
    }
    found
}

fn holds_tests(file: &Path) -> bool {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let in_folder = file.components().any(|part| part.as_os_str() == "tests");
    // `is_tests` is Jinja's word for `value is name`.
    in_folder || name == "tests" || name.ends_with("_tests") && name != "is_tests"
}

/// True for imports before the tests of a file that are written as `crate::…`, `super::…` or `self::…`, in a `use` or
/// in an expression. A bare name may be a variable, or a crate with the name of a module; a module needs a `use` too.
fn counts(text: &str, location: &Location) -> bool {
    let (line, column) = (location.line().unwrap_or(1), location.column().unwrap_or(1));
    if text
        .lines()
        .take(line)
        .any(|line| line.trim() == "#[cfg(test)]")
    {
        return false;
    }
    let start: usize = text
        .split_inclusive('\n')
        .take(line - 1)
        .map(str::len)
        .sum();
    let offset = text[start..].char_indices().nth(column - 1);
    let at = start + offset.map_or(0, |(offset, _)| offset);
    let is_rooted = |path: &str| {
        ["crate::", "super::", "self::"]
            .iter()
            .any(|root| path.starts_with(root))
    };
    let statement = text[..at].rsplit(';').next().unwrap_or_default();
    let used = statement
        .rfind("use ")
        .map(|start| statement[start + 4..].trim_start());
    is_rooted(&text[at..]) || used.is_some_and(is_rooted)
}

/// Imports between siblings by their common parent: importing child, imported child, and the import.
fn by_parent(imports: &[Import]) -> BTreeMap<&[String], Vec<(&str, &str, &Import)>> {
    let mut levels: BTreeMap<&[String], Vec<(&str, &str, &Import)>> = BTreeMap::new();
    for import in imports {
        let pairs = import.importer.iter().zip(&import.imported);
        let shared = pairs.take_while(|(a, b)| a == b).count();
        if let (Some(a), Some(b)) = (import.importer.get(shared), import.imported.get(shared)) {
            let level = levels.entry(&import.importer[..shared]).or_default();
            level.push((a, b, import));
        }
    }
    levels
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn imports_form_no_circle() {
    for (sources, _) in CRATES {
        let imports = imports(&root().join(sources));
        for (parent, edges) in by_parent(&imports) {
            let graph = DiGraphMap::<&str, ()>::from_edges(edges.iter().map(|(a, b, _)| (*a, *b)));
            for circle in tarjan_scc(&graph) {
                let inside = edges
                    .iter()
                    .filter(|(a, b, _)| circle.contains(a) && circle.contains(b));
                let places: Vec<_> = inside
                    .map(|(a, b, import)| format!("{a} -> {b}: {}", import.place))
                    .collect();
                assert!(
                    circle.len() == 1,
                    "a circle in {sources}, {parent:?}:\n{}",
                    places.join("\n")
                );
            }
        }
    }
}

#[test]
fn top_level_modules_import_downwards_only() {
    for (sources, layers) in CRATES {
        let row = |module: &str| {
            let found = layers.iter().position(|row| row.contains(&module));
            found
                .unwrap_or_else(|| panic!("{module} of {sources} is in no layer: add it to CRATES"))
        };
        let imports = imports(&root().join(sources));
        let levels = by_parent(&imports);
        let edges = levels.get(&[][..]).map(Vec::as_slice).unwrap_or_default();
        assert!(
            layers.is_empty() || !edges.is_empty(),
            "no import found in {sources}"
        );
        for (a, b, import) in edges {
            assert!(
                row(a) < row(b),
                "{sources}: {a} imports {b} upwards at {}",
                import.place
            );
        }
    }
}

#[test]
fn a_circle_and_an_upward_import_would_be_found() {
    let import = |importer: &[&str], imported: &[&str]| Import {
        importer: importer.iter().map(|&name| name.to_owned()).collect(),
        imported: imported.iter().map(|&name| name.to_owned()).collect(),
        place: String::new(),
    };
    let imports = [
        import(&["a", "x"], &["a", "y"]),
        import(&["a", "y", "z"], &["a", "x"]),
    ];
    let levels = by_parent(&imports);
    let edges: Vec<_> = levels[&["a".to_owned()][..]]
        .iter()
        .map(|(a, b, _)| (*a, *b))
        .collect();
    assert_eq!(edges, [("x", "y"), ("y", "x")]);
}

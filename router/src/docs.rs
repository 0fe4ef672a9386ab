//! Parts of the pages in docs/ that are generated from the code.

use crate::api::routes;

/// A generated part of a page. On the page it stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Path of the page, from the root of the repository.
    pub page: &'static str,
    pub name: &'static str,
    pub text: fn() -> String,
}

/// All generated parts.
pub const PARTS: [Part; 1] = [Part {
    page: "docs/api.md",
    name: "routes",
    text: routes::table,
}];

impl Part {
    /// The text of the page with this part up to date; `None` when the page has no place for it.
    pub fn update(&self, page: &str) -> Option<String> {
        let begin = format!("<!-- generated: {} -->\n", self.name);
        let end = format!("<!-- end: {} -->", self.name);
        let (before, rest) = page.split_once(&begin)?;
        let (_, after) = rest.split_once(&end)?;
        Some(format!(
            "{before}{begin}\n{}\n{end}{after}",
            (self.text)().trim_end()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_between_its_marks_changes() {
        let part = Part {
            page: "docs/x.md",
            name: "x",
            text: || "new\n".to_owned(),
        };
        let page = |text: &str| format!("a\n<!-- generated: x -->\n\n{text}\n<!-- end: x -->\nb\n");
        assert_eq!(part.update(&page("old")), Some(page("new")));
        assert_eq!(part.update("a\n"), None);
    }
}

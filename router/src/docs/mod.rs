//! Tables on the pages in docs/ that are generated from the code.

mod metrics;

use crate::api::routes;

/// A page with generated tables.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Path from the root of the repository.
    pub path: &'static str,
    /// Text of the page with its tables up to date. The error names a missing mark.
    pub update: fn(&str) -> Result<String, String>,
}

/// All pages with tables from the router.
pub const PAGES: [Page; 2] = [
    Page {
        path: "docs/api.md",
        update: |page| with_table(page, "routes", &routes::table()),
    },
    Page {
        path: "docs/metrics.md",
        update: metrics::with_tables,
    },
];

/// `page` with `table` between the lines `<!-- generated: NAME -->` and `<!-- end of generated -->`.
fn with_table(page: &str, name: &str, table: &str) -> Result<String, String> {
    let begin = format!("<!-- generated: {name} -->\n");
    let end = "<!-- end of generated -->";
    let (before, rest) = page
        .split_once(&begin)
        .ok_or_else(|| format!("the page has no line `{}`", begin.trim()))?;
    let (_, after) = rest
        .split_once(end)
        .ok_or_else(|| format!("the page has no line `{end}` after `{}`", begin.trim()))?;
    Ok(format!("{before}{begin}{table}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_table_between_its_marks_changes() {
        let page = |table: &str| {
            format!("a\n<!-- generated: x -->\n{table}<!-- end of generated -->\nb\n")
        };
        assert_eq!(with_table(&page("old\n"), "x", "new\n"), Ok(page("new\n")));
    }

    #[test]
    fn a_missing_mark_is_named() {
        for page in PAGES {
            let error = (page.update)("# A page").expect_err("no marks");
            assert!(error.contains("no line `<!-- generated: "), "{error}");
        }
    }

    #[test]
    fn pages_are_up_to_date() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for page in PAGES {
            let text = std::fs::read_to_string(root.join(page.path)).expect(page.path);
            let updated = (page.update)(&text).expect(page.path);
            assert!(
                updated == text,
                "{} is out of date; run `make docs`",
                page.path
            );
        }
    }
}

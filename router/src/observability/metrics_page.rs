//! Writes the tables of `docs/metrics.md` from the declared metrics.

use gridwork_engine::metrics::{Metric, Section};

use super::metrics::declared;

const SECTIONS: [(Section, &str); 3] = [
    (Section::Requests, "requests"),
    (Section::Generations, "generations"),
    (Section::Scheduler, "scheduler"),
];

/// The page with its tables written anew. A table stands between `<!-- generated: SECTION -->` and
/// `<!-- end of generated -->`. An error names the mark that is missing.
pub fn with_tables(page: &str) -> Result<String, String> {
    let mut page = page.to_owned();
    for (section, name) in SECTIONS {
        let begin = format!("<!-- generated: {name} -->\n");
        let end = "<!-- end of generated -->";
        let start = page
            .find(&begin)
            .map(|at| at + begin.len())
            .ok_or_else(|| format!("the page has no line `{}`", begin.trim()))?;
        let stop = page[start..]
            .find(end)
            .map(|at| start + at)
            .ok_or_else(|| format!("the page has no line `{end}` after `{}`", begin.trim()))?;
        page.replace_range(start..stop, &table(section));
    }
    Ok(page)
}

fn table(section: Section) -> String {
    let rows = declared()
        .filter(|metric| metric.section == section)
        .map(row);
    let rows: String = rows.collect();
    format!("| Metric | Type | Meaning |\n|---|---|---|\n{rows}")
}

fn row(metric: &Metric) -> String {
    let labels = if metric.labels.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", metric.labels.join(","))
    };
    format!(
        "| `{}{labels}` | {} | {} |\n",
        metric.name,
        metric.kind.name(),
        metric.description
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_md_has_every_declared_metric() {
        let page = include_str!("../../../docs/metrics.md");
        assert_eq!(
            with_tables(page).expect("all marks"),
            page,
            "run `make docs`"
        );
    }

    #[test]
    fn a_missing_mark_is_named() {
        let error = with_tables("# Metrics").expect_err("no marks");
        assert_eq!(error, "the page has no line `<!-- generated: requests -->`");
    }
}

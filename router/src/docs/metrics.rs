//! Tables of docs/metrics.md, from the declared metrics.

use gridwork_engine::metrics::{Metric, Section};

use super::with_table;
use crate::observability::metrics::declared;
use crate::observability::vllm_names;

const SECTIONS: [(Section, &str); 4] = [
    (Section::Requests, "requests"),
    (Section::Generations, "generations"),
    (Section::Scheduler, "scheduler"),
    (Section::Server, "server"),
];

/// Text of the page with its tables up to date.
pub fn with_tables(page: &str) -> Result<String, String> {
    let mut page = page.to_owned();
    for (section, name) in SECTIONS {
        page = with_table(&page, name, &table(section))?;
    }
    with_table(&page, "vllm", &vllm_names::table())
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

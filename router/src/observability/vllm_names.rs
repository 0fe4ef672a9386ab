//! vLLM's names for metrics, so that what reads vLLM's page reads this one: the endpoint picker of Kubernetes' Gateway
//! API inference extension, autoscalers, dashboards.
//!
//! The page shows each such metric a second time, under vLLM's name and with vLLM's labels `model_name` and `engine`. It is
//! copied when the page is read: recording costs nothing more, and both names always agree.

use std::fmt::Write;

/// A metric that the page shows under vLLM's name too.
#[derive(Debug, Clone, Copy)]
pub struct Alias {
    /// vLLM's name.
    pub name: &'static str,
    /// Gridwork's name.
    pub of: &'static str,
    /// Differences of meaning, for docs/metrics.md.
    pub differences: &'static str,
}

/// All metrics that are copied.
pub const ALIASES: &[Alias] = &[
    Alias {
        name: "vllm:num_requests_waiting",
        of: "gridwork_queue_size",
        differences: "",
    },
    Alias {
        name: "vllm:num_requests_running",
        of: "gridwork_running_sequences",
        differences: "",
    },
    Alias {
        name: "vllm:kv_cache_usage_perc",
        of: "gridwork_kv_cache_usage_ratio",
        differences: "From 0 to 1, as vLLM's",
    },
    Alias {
        name: "vllm:num_preemptions_total",
        of: "gridwork_preemptions_total",
        differences: "",
    },
    Alias {
        name: "vllm:prompt_tokens_total",
        of: "gridwork_prompt_tokens_total",
        differences: "Counted when a generation is admitted, not when it is computed",
    },
    Alias {
        name: "vllm:generation_tokens_total",
        of: "gridwork_generated_tokens_total",
        differences: "",
    },
    Alias {
        name: "vllm:prefix_cache_queries_total",
        of: "gridwork_prefix_cache_lookup_tokens_total",
        differences: "In tokens, as vLLM's",
    },
    Alias {
        name: "vllm:prefix_cache_hits_total",
        of: "gridwork_prefix_cache_hit_tokens_total",
        differences: "In tokens, as vLLM's",
    },
    Alias {
        name: "vllm:request_success_total",
        of: "gridwork_request_success_total",
        differences: "Without the label `finished_reason`; requests, not generations",
    },
    Alias {
        name: "vllm:iteration_tokens_total",
        of: "gridwork_step_tokens",
        differences: "A histogram, as vLLM's",
    },
    Alias {
        name: "vllm:time_to_first_token_seconds",
        of: "gridwork_time_to_first_token_seconds",
        differences: "From admission, after tokenizing",
    },
    Alias {
        name: "vllm:request_time_per_output_token_seconds",
        of: "gridwork_time_per_output_token_seconds",
        differences: "The mean of each generation; there is no `vllm:inter_token_latency_seconds`, which has a value \
                      for each token",
    },
    Alias {
        name: "vllm:e2e_request_latency_seconds",
        of: "gridwork_request_duration_seconds",
        differences: "Of whole requests, not of generations",
    },
    Alias {
        name: "vllm:request_queue_time_seconds",
        of: "gridwork_request_queue_seconds",
        differences: "",
    },
    Alias {
        name: "vllm:request_inference_time_seconds",
        of: "gridwork_request_inference_seconds",
        differences: "",
    },
    Alias {
        name: "vllm:request_prompt_tokens",
        of: "gridwork_request_input_tokens",
        differences: "",
    },
    Alias {
        name: "vllm:request_generation_tokens",
        of: "gridwork_request_generated_tokens",
        differences: "Of whole requests, not of generations",
    },
];

/// Size of the cache, in blocks.
#[derive(Debug, Clone, Copy)]
pub struct CacheBlocks {
    pub block_size_tokens: u32,
    pub num_blocks: u32,
}

/// Adds vLLM's names to `page`, which has Gridwork's in Prometheus' text format. `cache`: `None` before the model is
/// loaded, and for encoders.
pub fn append(page: &mut String, model_name: &str, cache: Option<CacheBlocks>) {
    let labels = format!("model_name=\"{}\",engine=\"0\"", escaped(model_name));
    let copies = ALIASES
        .iter()
        .filter_map(|alias| copy(page, alias, &labels))
        .collect::<String>();
    page.push_str(&copies);
    let mut info = |name: &str, help: &str, more: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(
            page,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{{labels},{more}}} 1\n"
        );
    };
    if let Some(cache) = cache {
        let CacheBlocks {
            block_size_tokens,
            num_blocks,
        } = cache;
        info(
            "vllm:cache_config_info",
            "Size of the cache, under vLLM's name",
            &format!("block_size=\"{block_size_tokens}\",num_gpu_blocks=\"{num_blocks}\""),
        );
    }
    info(
        "vllm:lora_requests_info",
        "Adapters of the requests, under vLLM's name; there are none",
        "max_lora=\"0\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"",
    );
}

/// Lines of a metric on `page` under vLLM's name; `None` when the page does not have it.
fn copy(page: &str, alias: &Alias, labels: &str) -> Option<String> {
    let mut lines = String::new();
    for line in page.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            // A comment is `HELP name text` or `TYPE name kind`.
            let mut words = comment.splitn(3, ' ');
            if let (Some(word), Some(name), Some(rest)) = (words.next(), words.next(), words.next())
                && name == alias.of
            {
                let _ = writeln!(lines, "# {word} {} {rest}", alias.name);
            }
        } else if let Some(rest) = line.strip_prefix(alias.of) {
            let Some(end) = rest.find(['{', ' ']) else {
                continue;
            };
            let (suffix, rest) = rest.split_at(end);
            if !matches!(suffix, "" | "_bucket" | "_sum" | "_count") {
                continue;
            }
            let name = alias.name;
            let _ = match rest.strip_prefix('{') {
                Some(more) => writeln!(lines, "{name}{suffix}{{{labels},{more}"),
                None => writeln!(lines, "{name}{suffix}{{{labels}}}{rest}"),
            };
        }
    }
    (!lines.is_empty()).then(|| lines + "\n")
}

/// A label's value as the text format writes it.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Table for docs/metrics.md.
pub fn table() -> String {
    let row = |alias: &Alias| {
        format!(
            "| `{}` | `{}` | {} |\n",
            alias.name, alias.of, alias.differences
        )
    };
    let rows: String = ALIASES.iter().map(row).collect();
    let infos = "\
        | `vllm:cache_config_info{block_size,num_gpu_blocks}` | – | Always 1. Blocks of the shard's device, a CPU too; \
        not for encoders |\n\
        | `vllm:lora_requests_info{max_lora,running_lora_adapters,waiting_lora_adapters}` | – | There are no adapters: \
        `max_lora` is 0 |\n";
    format!("| vLLM | Gridwork | Differences |\n|---|---|---|\n{rows}{infos}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::observability::metrics::declared;

    const PAGE: &str = "\
# HELP gridwork_queue_size Generations that wait
# TYPE gridwork_queue_size gauge
gridwork_queue_size 3

# HELP gridwork_queue_size_of_others Not copied
# TYPE gridwork_queue_size_of_others gauge
gridwork_queue_size_of_others 9

# TYPE gridwork_step_tokens histogram
gridwork_step_tokens_bucket{le=\"1\"} 0
gridwork_step_tokens_bucket{le=\"+Inf\"} 2
gridwork_step_tokens_sum 7
gridwork_step_tokens_count 2

";

    fn appended(model_name: &str, cache: Option<CacheBlocks>) -> String {
        let mut page = PAGE.to_owned();
        append(&mut page, model_name, cache);
        page.strip_prefix(PAGE).expect("what was there").to_owned()
    }

    #[test]
    fn values_and_buckets_are_copied_with_the_name_of_the_model() {
        let text = appended("org/m", None);
        for line in [
            "# HELP vllm:num_requests_waiting Generations that wait",
            "# TYPE vllm:num_requests_waiting gauge",
            "vllm:num_requests_waiting{model_name=\"org/m\",engine=\"0\"} 3",
            "# TYPE vllm:iteration_tokens_total histogram",
            "vllm:iteration_tokens_total_bucket{model_name=\"org/m\",engine=\"0\",le=\"+Inf\"} 2",
            "vllm:iteration_tokens_total_sum{model_name=\"org/m\",engine=\"0\"} 7",
            "vllm:lora_requests_info{model_name=\"org/m\",engine=\"0\",max_lora=\"0\",running_lora_adapters=\"\",\
             waiting_lora_adapters=\"\"} 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no `{line}` in:\n{text}"
            );
        }
        assert!(!text.contains("of_others"));
        assert!(!text.contains("vllm:cache_config_info"));
    }

    #[test]
    fn the_size_of_the_cache_is_in_labels() {
        let cache = CacheBlocks {
            block_size_tokens: 16,
            num_blocks: 100,
        };
        let line = "vllm:cache_config_info{model_name=\"m\",engine=\"0\",block_size=\"16\",num_gpu_blocks=\"100\"} 1";
        assert!(
            appended("m", Some(cache))
                .lines()
                .any(|found| found == line)
        );
    }

    #[test]
    fn a_name_cannot_leave_its_label() {
        let text = appended("a\"} 1\nb\\", None);
        assert!(
            text.contains("{model_name=\"a\\\"} 1\\nb\\\\\",engine=\"0\"}"),
            "{text}"
        );
    }

    #[test]
    fn every_alias_is_of_a_declared_metric_and_has_a_name_of_its_own() {
        let declared: HashSet<_> = declared().map(|metric| metric.name).collect();
        let mut names = HashSet::new();
        for alias in ALIASES {
            assert!(declared.contains(alias.of), "{}", alias.of);
            assert!(names.insert(alias.name), "{}", alias.name);
        }
    }
}

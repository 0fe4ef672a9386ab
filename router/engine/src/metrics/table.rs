//! Tables of metrics. A row declares a metric once; the handles that record it, its buckets, its description on
//! `/metrics` and its line in `docs/metrics.md` follow from the row.

/// One metric of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// Names of the labels. A metric with labels appears when it is first recorded.
    pub labels: &'static [&'static str],
    pub unit: Unit,
    pub section: Section,
    pub description: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    non_camel_case_types,
    reason = "spelled as the macros that register the metrics"
)]
pub enum Kind {
    counter,
    gauge,
    histogram,
}

/// Unit of the recorded values. Buckets of a histogram follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    /// Seconds of a latency that users have objectives for: its buckets are twice as fine.
    Latency,
    Tokens,
    Sequences,
    Blocks,
    /// Requests, steps, connections and other events.
    Count,
}

/// Section of `docs/metrics.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Requests,
    Generations,
    Scheduler,
    Server,
}

impl Kind {
    /// The type's name in Prometheus' format.
    pub fn name(self) -> &'static str {
        match self {
            Kind::counter => "counter",
            Kind::gauge => "gauge",
            Kind::histogram => "histogram",
        }
    }
}

/// Declares metrics that are recorded through a struct of handles, which are looked up once. Each row is
/// `field = kind("name", unit, section, "description");`. The rows are the struct's constant `METRICS`.
#[macro_export]
macro_rules! metric_handles {
    (
        $(#[$attribute:meta])*
        $vis:vis struct $handles:ident {
            $( $field:ident = $kind:ident($name:literal, $unit:ident, $section:ident, $description:literal); )*
        }
    ) => {
        $(#[$attribute])*
        $vis struct $handles {
            $( #[doc = $description] pub $field: $crate::metric_handles!(@type $kind), )*
        }

        impl $handles {
            /// The declared metrics.
            pub const METRICS: &[$crate::metrics::Metric] = &[
                $( $crate::metrics::Metric {
                    name: $name,
                    kind: $crate::metrics::Kind::$kind,
                    labels: &[],
                    unit: $crate::metrics::Unit::$unit,
                    section: $crate::metrics::Section::$section,
                    description: $description,
                }, )*
            ];

            /// Registers with the recorder that is installed now.
            pub fn new() -> Self {
                $handles { $( $field: ::metrics::$kind!($name), )* }
            }
        }
    };
    (@type counter) => { ::metrics::Counter };
    (@type gauge) => { ::metrics::Gauge };
    (@type histogram) => { ::metrics::Histogram };
}

/// Declares metrics that are recorded through functions, which look the handle up at each call. Each row is
/// `function(label) = kind("name", unit, section, "description");`. The rows are the constant of the given name.
#[macro_export]
macro_rules! metric_functions {
    (
        $(#[$attribute:meta])*
        $vis:vis const $metrics:ident;
        $( $function:ident($( $label:ident )?) = $kind:ident($name:literal, $unit:ident, $section:ident, $description:literal); )*
    ) => {
        $(#[$attribute])*
        $vis const $metrics: &[$crate::metrics::Metric] = &[
            $( $crate::metrics::Metric {
                name: $name,
                kind: $crate::metrics::Kind::$kind,
                labels: &[$( stringify!($label) )?],
                unit: $crate::metrics::Unit::$unit,
                section: $crate::metrics::Section::$section,
                description: $description,
            }, )*
        ];

        $(
            #[doc = $description]
            $vis fn $function($( $label: &'static str )?) -> $crate::metric_handles!(@type $kind) {
                ::metrics::$kind!($name $( , stringify!($label) => $label )?)
            }
        )*
    };
}

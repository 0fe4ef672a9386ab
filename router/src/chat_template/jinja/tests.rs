//! Compares constructs of Jinja2 with Jinja2's own answers, and tests the limits.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::*;

/// Written by `integration-tests/test_chat_templates.py`.
const CONSTRUCTS: &str = include_str!("../testdata/constructs.json");

#[derive(Deserialize)]
struct Constructs {
    variables: Map<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    /// Text that Jinja2 renders.
    answer: Option<String>,
    /// Exception that Jinja2 raises instead.
    error: Option<String>,
    /// True if this interpreter refuses the construct.
    #[serde(default)]
    refused: bool,
}

fn render_with(
    source: &str,
    variables: &Map<String, Value>,
    limits: &Limits,
) -> Result<String, Error> {
    let variables = variables.iter().map(|(name, value)| (name.as_str(), value));
    Template::parse(source)?.render(variables, limits)
}

fn render(source: &str) -> Result<String, Error> {
    render_with(source, &Map::new(), &Limits::for_input(source.len()))
}

#[test]
fn constructs_give_what_jinja2_gives_or_are_refused_by_name() {
    let constructs: Constructs = serde_json::from_str(CONSTRUCTS).unwrap();
    let limits = Limits::for_input(10_000);
    let mut wrong = Vec::new();
    for case in &constructs.cases {
        let result = render_with(&case.template, &constructs.variables, &limits);
        let fits = match &result {
            Ok(text) => !case.refused && case.answer.as_ref() == Some(text),
            Err(error) if case.error.is_some() => error.line > 0,
            Err(error) => {
                case.refused
                    && error.kind == Kind::Refused
                    && error.line > 0
                    && error.message.contains("not supported in chat templates")
            }
        };
        if !fits {
            let wanted = case.answer.as_ref().or(case.error.as_ref());
            wrong.push(format!(
                "{:?}\n  wanted {wanted:?}\n  got    {result:?}",
                case.template
            ));
        }
    }
    assert!(constructs.cases.len() > 2000);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn failures_name_the_line_they_come_from() {
    for (source, line) in [
        ("a\n\n{{ x.y.z }}", 3),
        ("{% if true %}\n{{ 1 /\n 0 }}\n{% endif %}", 2),
        (
            "{% macro m() %}\n{{ 'a' + 1 }}\n{% endmacro %}\n{{ m() }}",
            2,
        ),
        ("\n{% for %}", 2),
        ("{#\n\n#}{{ raise_exception('x') }}", 3),
        ("a\r\nb\r\n{{ 1|nope }}", 3),
        ("{{ 'a' }}\n{{ [1]|random }}", 2),
    ] {
        assert_eq!(render(source).unwrap_err().line, line, "{source:?}");
    }
}

mod limits {
    use super::*;

    /// Fewer steps than a server allows, to keep the tests fast.
    fn limited(source: &str) -> Error {
        let limits = Limits {
            steps: 1_000_000,
            ..Limits::for_input(source.len())
        };
        render_with(source, &Map::new(), &limits).expect_err(source)
    }

    #[test]
    fn endless_work_ends() {
        for source in [
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
            "{% set ns = namespace(a='x') %}{% for i in range(100000) %}{% set ns.a = ns.a ~ 'y' ~ range(1000)|list %}{% endfor %}",
            "{% for i in range(100000) %}{% set x = range(100000)|list %}{% endfor %}",
            "{% for i in range(100000) %}{{ range(100000)|sum }}{% endfor %}",
            "{% for i in range(100000) %}{{ 'a' * 1000 in 'b' * 1000000 }}{% endfor %}",
            "{% set l = range(100000)|list %}{% for i in l %}{{ l == l + [1] }}{{ i in l }}{% endfor %}",
        ] {
            assert_eq!(limited(source).kind, Kind::Limit, "{source}");
        }
    }

    #[test]
    fn values_that_grow_are_refused_before_they_fill_the_memory() {
        for source in [
            "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
            "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
            "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
            "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
            "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a|tojson }}",
            "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
            "{% set ns = namespace(a=(1,), b=0) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ {ns.a: 1} }}",
            "{{ 'x' * 10 ** 12 }}",
            "{{ [1] * 10 ** 12 }}",
            "{{ 'x'.center(10 ** 12) }}",
            "{{ 'x'.zfill(10 ** 12) }}",
            "{{ '%1000000000d' % 1 }}",
            "{{ '{:1000000000}'.format(1) }}",
            "{{ ('x' * 100000).replace('', 'y' * 100000) }}",
            "{{ ['x' * 100000] * 100000 | join }}",
            "{{ (['x' * 100000] * 100000) | join }}",
            "{{ ('x' * 100000).join('y' * 100000) }}",
            "{{ 'a\\tb'.expandtabs(10 ** 12) }}",
            "{{ 'a\\nb' | indent(10 ** 12) }}",
            "{{ [1] | tojson(indent=10 ** 12) }}",
            "{{ [1] | batch(10 ** 12, 'x') | list }}",
            "{{ [1] | slice(10 ** 12) | list }}",
            "{% set x %}{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}{% endset %}",
            "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
        ] {
            let error = limited(source);
            assert!(
                matches!(error.kind, Kind::Limit | Kind::Refused | Kind::Runtime),
                "{error:?}"
            );
            assert!(error.line > 0, "{source}: {error:?}");
        }
    }

    #[test]
    fn what_nests_too_deep_is_refused_without_a_crash() {
        let deep = |open: &str, close: &str| {
            format!("{{{{ {}1{} }}}}", open.repeat(50_000), close.repeat(50_000))
        };
        for source in [
            "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}".to_owned(),
            "{% macro m() %}{{ caller() }}{% endmacro %}{% macro r() %}{% call m() %}{{ r() }}{% endcall %}{% endmacro %}{{ r() }}".to_owned(),
            "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
            "{% set ns = namespace(a=[]) %}{% for i in range(100000) %}{% set ns.a = [ns.a] %}{% endfor %}".to_owned(),
            "{% set ns = namespace(a={}) %}{% for i in range(100000) %}{% set ns.a = {'a': ns.a} %}{% endfor %}".to_owned(),
            "{% set ns = namespace(a=joiner()) %}{% for i in range(100000) %}{% set ns.a = joiner(ns.a) %}{% set ns.a = [ns.a] %}{% endfor %}".to_owned(),
            deep("(", ")"),
            deep("[", "]"),
            deep("not ", ""),
            deep("-", ""),
            deep("1 + ", ""),
            format!("{{{{ {}1{} }}}}", "(".repeat(100), format!("{})", " + 1".repeat(500)).repeat(100)),
            format!("{{{{ 1{} }}}}", "|abs".repeat(50_000)),
            format!("{{% set x{} %}}{{% endset %}}", "|abs".repeat(50_000)),
            format!("{{{{ a{} }}}}", "[0]".repeat(50_000)),
            "{% macro m() %}".repeat(5_000),
            deep("a.", ""),
            deep("1 if 1 else ", ""),
            format!("{}{}", "{% if 1 %}".repeat(50_000), "{% endif %}".repeat(50_000)),
            format!("{}x", "{% for x in [1] %}".repeat(50_000)),
        ] {
            let shown = &source[..source.len().min(60)];
            assert!(render(&source).is_err(), "{shown}");
        }
    }

    #[test]
    fn values_that_hold_each_other_are_freed_without_a_crash() {
        for source in [
            "{% set ns = namespace() %}{% for i in range(20000) %}{% set ns.a = namespace(b=ns.a) %}{% endfor %}",
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns.a.a.a is defined }}",
            "{% set ns = namespace() %}{% macro m(x) %}{% macro k() %}{{ x }}{% endmacro %}{% set ns.m = k %}{% endmacro %}{% for i in range(20000) %}{{ m(ns.m) }}{% endfor %}",
        ] {
            render(source).expect(source);
        }
    }

    #[test]
    fn the_clock_is_the_last_resort() {
        let limits = Limits {
            steps: u64::MAX,
            time: Duration::ZERO,
            ..Limits::for_input(0)
        };
        let source = "{% for i in range(100000) %}{% endfor %}";
        let error = render_with(source, &Map::new(), &limits).unwrap_err();
        assert_eq!(error.kind, Kind::Limit);
        assert!(error.message.contains("longer"), "{error}");
    }

    #[test]
    fn what_a_rendering_used_is_given_back() {
        let limits = Limits::for_input(0);
        for _ in 0..50 {
            let source = "{% set x = 'x' * 2000000 %}{{ (x ~ x)|length }}";
            assert_eq!(
                render_with(source, &Map::new(), &limits).unwrap(),
                "4000000"
            );
        }
        let source = "{% for i in range(200) %}{% set x = 'x' * 2000000 %}{% endfor %}ok";
        assert_eq!(render_with(source, &Map::new(), &limits).unwrap(), "ok");
    }

    #[test]
    fn long_conversations_with_tools_are_within_the_limits() {
        let text = "An honest line of a long conversation.\n".repeat(3);
        let messages: Vec<Value> = (0..4000)
            .map(|at| json!({"role": if at % 2 == 0 { "user" } else { "assistant" }, "content": text}))
            .collect();
        let tool = json!({"type": "function", "function": {"name": "f", "description": text,
            "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": text}}}}});
        let variables = json!({"messages": messages, "tools": vec![tool; 100]});
        let source = "{%- for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}\
            {%- set ns = namespace(last=messages|length - 1, text='') %}\
            {%- for message in messages[::-1] %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}\
            {%- for message in messages %}\
            {%- set content = message.content | trim %}\
            {%- if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}\
            {{- '<|' + message.role + '|>\\n' + content + '<|end|>\\n' }}\
            {%- set ns.text = ns.text ~ message.role %}\
            {%- for later in messages[loop.index:] %}{% if later.role == 'user' %}{% break %}{% endif %}{% endfor %}\
            {%- endfor %}";
        let input = serde_json::to_string(&variables).unwrap().len();
        assert!(input > 480_000);
        let limits = Limits::for_input(input);
        let variables = variables.as_object().unwrap();
        let prompt = render_with(source, variables, &limits).unwrap();
        assert!(prompt.len() > 480_000);
    }
}

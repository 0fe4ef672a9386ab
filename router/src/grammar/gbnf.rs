//! Translates grammars in EBNF with `::=`, as llama.cpp (GBNF), SGLang and vLLM read them, into Lark.
//!
//! Lark has rules and terminals. A terminal is matched as a whole, as long as possible, so everything that does not
//! refer to itself becomes part of a terminal: a text that a rule allows is then never cut off by an earlier part of it.

use super::gbnf_parser::{Expression, Rule, parse};
use super::literal;

/// Name of the rule that a text follows.
const ROOT: &str = "root";

/// Translates a grammar. The error says what is wrong, and in which line.
pub fn to_lark(text: &str) -> Result<String, String> {
    let rules = parse(text)?;
    let Some(root) = rules.iter().position(|rule| rule.name == ROOT) else {
        return Err(format!("it has no rule `{ROOT}`"));
    };
    let mut writer = Writer {
        is_terminal: terminals(&rules),
        rules: &rules,
        text: String::new(),
        num_hoisted: 0,
    };
    let start = writer.reference(root);
    writer.line("start", &start);
    for index in 0..rules.len() {
        writer.rule(index);
    }
    Ok(writer.text)
}

/// True for each rule that does not lead back to itself, directly or through others.
fn terminals(rules: &[Rule]) -> Vec<bool> {
    let mut is_terminal = vec![false; rules.len()];
    // A rule is a terminal once all that it refers to are.
    loop {
        let mut changed = false;
        for (index, rule) in rules.iter().enumerate() {
            if !is_terminal[index] && is_regular(&rule.body, &is_terminal) {
                is_terminal[index] = true;
                changed = true;
            }
        }
        if !changed {
            return is_terminal;
        }
    }
}

fn is_regular(expression: &Expression, is_terminal: &[bool]) -> bool {
    match expression {
        Expression::Literal(_) | Expression::Class(_) => true,
        Expression::Rule(index) => is_terminal[*index],
        Expression::Sequence(items) | Expression::Choice(items) => {
            items.iter().all(|item| is_regular(item, is_terminal))
        }
        Expression::Repeat(item, _, _) => is_regular(item, is_terminal),
    }
}

struct Writer<'a> {
    rules: &'a [Rule],
    is_terminal: Vec<bool>,
    text: String,
    /// Number of terminals that were made of parts of rules.
    num_hoisted: usize,
}

impl Writer<'_> {
    fn line(&mut self, name: &str, body: &str) {
        self.text.push_str(&format!("{name}: {body}\n"));
    }

    /// Name of a rule in Lark. Terminals are written in capitals.
    fn reference(&self, index: usize) -> String {
        let given = &self.rules[index].name;
        let plain: String = given
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        let name = format!("r{index}_{plain}");
        if self.is_terminal[index] {
            name.to_ascii_uppercase()
        } else {
            name.to_ascii_lowercase()
        }
    }

    fn rule(&mut self, index: usize) {
        let rules = self.rules;
        let body = &rules[index].body;
        let written = if self.is_terminal[index] {
            self.terminal(body)
        } else {
            self.expression(body)
        };
        let name = self.reference(index);
        self.line(&name, &written);
    }

    /// An expression within a terminal.
    fn terminal(&self, expression: &Expression) -> String {
        match expression {
            Expression::Literal(text) => literal(text),
            Expression::Class(regex) => format!("/{regex}/"),
            Expression::Rule(index) => self.reference(*index),
            Expression::Sequence(items) => self.joined(items, " "),
            Expression::Choice(items) => format!("({})", self.joined(items, " | ")),
            Expression::Repeat(item, min, max) => {
                format!("({}){}", self.terminal(item), times(*min, *max))
            }
        }
    }

    fn joined(&self, items: &[Expression], separator: &str) -> String {
        if items.is_empty() {
            return literal("");
        }
        let written: Vec<String> = items.iter().map(|item| self.terminal(item)).collect();
        written.join(separator)
    }

    /// An expression within a rule. Its regular parts become terminals.
    fn expression(&mut self, expression: &Expression) -> String {
        if is_regular(expression, &self.is_terminal) {
            return self.hoisted(std::slice::from_ref(expression));
        }
        match expression {
            Expression::Literal(_) | Expression::Class(_) => String::new(),
            Expression::Rule(index) => self.reference(*index),
            Expression::Sequence(items) => self.sequence(items),
            Expression::Choice(items) => {
                let written: Vec<String> = items.iter().map(|item| self.expression(item)).collect();
                format!("({})", written.join(" | "))
            }
            Expression::Repeat(item, min, max) => {
                format!("({}){}", self.expression(item), times(*min, *max))
            }
        }
    }

    /// A sequence within a rule: neighbours that are regular become one terminal.
    fn sequence(&mut self, items: &[Expression]) -> String {
        let is_terminal = self.is_terminal.clone();
        let regular = |item: &Expression| is_regular(item, &is_terminal);
        let mut written = Vec::new();
        for run in items.chunk_by(|a, b| regular(a) && regular(b)) {
            if run.iter().all(regular) {
                written.push(self.hoisted(run));
            } else {
                written.extend(run.iter().map(|item| self.expression(item)));
            }
        }
        written.join(" ")
    }

    /// Name of a terminal that is made of neighbouring items.
    fn hoisted(&mut self, items: &[Expression]) -> String {
        if let [Expression::Rule(index)] = items {
            return self.reference(*index);
        }
        let body = self.joined(items, " ");
        let name = format!("T{}", self.num_hoisted);
        self.num_hoisted += 1;
        self.line(&name, &body);
        name
    }
}

/// The suffix of a repetition.
fn times(min: u32, max: Option<u32>) -> String {
    match (min, max) {
        (0, None) => "*".to_owned(),
        (1, None) => "+".to_owned(),
        (0, Some(1)) => "?".to_owned(),
        (min, None) => format!("{{{min},}}"),
        (min, Some(max)) => format!("{{{min},{max}}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_recur_becomes_a_terminal() {
        let lark = to_lark("root ::= digit+ \"-\" [^a-z/]?\ndigit ::= [0-9] # one\n").unwrap();
        assert_eq!(
            lark,
            "start: R0_ROOT\nR0_ROOT: (R1_DIGIT)+ \"-\" (/[^a-z\\/]/)?\nR1_DIGIT: /[0-9]/\n"
        );
    }

    #[test]
    fn neighbours_in_a_recursive_rule_become_one_terminal() {
        let lark =
            to_lark("root ::= \"[\" ws (root | [a-z]+ \"ing\") ws \"]\"\nws ::= \" \"*").unwrap();
        assert_eq!(
            lark,
            "T0: \"[\" R1_WS\nT1: (/[a-z]/)+ \"ing\"\nT2: R1_WS \"]\"\nr0_root: T0 (r0_root | T1) T2\nR1_WS: (\" \")*\n"
                .replacen("T0:", "start: r0_root\nT0:", 1)
        );
    }

    #[test]
    fn errors_name_the_line() {
        for (text, words) in [
            ("a ::= \"x\"", "no rule `root`"),
            ("root ::= other", "line 1: there is no rule `other`"),
            ("root ::= \"a\n", "line 1: a text is not closed"),
            ("root ::= (\"a\"", "line 1: `)` is missing"),
            (
                "root ::= \"a\"\nroot ::= \"b\"",
                "line 2: the rule `root` is defined twice",
            ),
            ("root ::= \"a\" ::= \"b\"", "line 1: "),
            ("root ::= [a-", "line 1: a class is not closed"),
            ("root ::= \"a\"{3,1}", "line 1: "),
            ("root = \"a\"", "line 1: "),
        ] {
            let error = to_lark(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let nested = format!("root ::= {}\"a\"{}", "(".repeat(5000), ")".repeat(5000));
        assert!(to_lark(&nested).unwrap_err().contains("nested"));
    }
}

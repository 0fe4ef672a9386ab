//! Random answers made of the formats' own markers: nothing fails, and cuts change nothing. `PROPTEST_CASES` sets how
//! many are tried.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::test_families::{Family, families, join, parse};
use super::{Plan, Wanted, rules};

/// Fragments besides the markers.
const FRAGMENTS: [&str; 26] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "=",
    "(",
    ")",
    " ",
    "\n",
    "\\",
    "\\u00e9",
    "\\ud83d",
    "é",
    "zqalpha",
    "\"name\": \"zqalpha\"",
    "\"arguments\": {",
    "zqtext",
    "'",
    "12",
    "null",
    "text",
    "<",
    ">",
];

/// Plans of all families, and the fragments of their answers.
fn plans() -> &'static [(String, Plan, Vec<String>)] {
    static PLANS: OnceLock<Vec<(String, Plan, Vec<String>)>> = OnceLock::new();
    PLANS.get_or_init(|| families().iter().filter_map(with_fragments).collect())
}

fn with_fragments(family: &Family) -> Option<(String, Plan, Vec<String>)> {
    let plan = family.plan(&family.prompt())?;
    let markers = family.format.markers(true);
    let markers = markers.into_iter().map(str::to_owned);
    // Parts of markers too: an answer may stray in the middle of one.
    let halves = family
        .format
        .markers(true)
        .into_iter()
        .filter_map(|marker| {
            let half = marker.char_indices().nth(marker.chars().count() / 2)?.0;
            Some(marker[half..].to_owned())
        });
    let fragments = FRAGMENTS.iter().map(|&fragment| fragment.to_owned());
    let fragments = markers.chain(halves).chain(fragments).collect();
    Some((family.name.clone(), plan, fragments))
}

proptest! {
    #[test]
    fn random_answers_never_fail_and_do_not_depend_on_cuts(
        family in any::<prop::sample::Index>(),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let (name, plan, fragments) = family.get(plans());
        let answer: String = choices.iter().map(|choice| choice.get(fragments).as_str()).collect();
        let whole = parse(plan, &answer);
        let mut places: Vec<usize> = cuts
            .iter()
            .filter(|_| !answer.is_empty())
            .map(|cut| cut.index(answer.len()))
            .filter(|place| answer.is_char_boundary(*place))
            .collect();
        places.sort_unstable();
        let mut parser = plan.parser();
        let mut pieces = Vec::new();
        let mut start = 0;
        for place in places {
            pieces.extend(parser.push(&answer[start..place]));
            start = place;
        }
        pieces.extend(parser.push(&answer[start..]));
        pieces.extend(parser.finish());
        prop_assert_eq!(join(pieces), whole, "{}: {:?}", name, answer);
    }
}

#[test]
fn every_family_has_rules_for_required_calls() {
    for (name, plan, _) in plans() {
        if plan.tools.is_empty() {
            continue;
        }
        for wanted in [
            Wanted::Required,
            Wanted::Named("zqalpha"),
            Wanted::Content("content"),
        ] {
            let rules = rules(plan, wanted, &[]).unwrap().unwrap();
            assert!(rules.text.contains("start: "), "{name}: {}", rules.text);
            for schema in &rules.schemas {
                assert!(rules.text.contains(&format!("@{}", schema.name)), "{name}");
            }
        }
    }
}

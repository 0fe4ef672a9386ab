//! Defaults from the model's generation config, for parameters that a request leaves out.

use gridwork_engine::GenerationRequest;
use gridwork_proto::v1::InfoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use crate::generation::parameters::Parameters;
use crate::generation::table::parameter_table;
use crate::generation::token_runs;
use crate::generation::watermark::{Settings, Watermark};

macro_rules! declare_defaults {
    ({} $(
        $(#[$doc:meta])* $name:ident: $type:ty {
            meaning {
                $(sets $($target:ident).+ or $neutral:expr;)?
                $(model_default $model_default:ident;)?
                $(asks_for_sampling $asks_for_sampling:literal;)?
                $(check $check:expr;)*
            }
            openai $openai:tt
            tgi $tgi:tt
            transformers $transformers:tt
        }
    )*) => {
        /// Defaults of the OpenAI routes from the model's generation config, where they differ from the API's own.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
        pub struct Defaults {
            #[serde(skip_serializing_if = "Option::is_none")]
            pub do_sample: Option<bool>,
            $($(
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $model_default: Option<$type>,
            )?)*
            #[serde(skip_serializing_if = "Option::is_none")]
            pub max_new_tokens: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            pub min_new_tokens: Option<u32>,
            /// Minimum number of tokens with the prompt's.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub min_length: Option<u32>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub stop_strings: Vec<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            pub watermark: Option<Settings>,
        }

        impl Defaults {
            pub fn of(info: &InfoResponse) -> Self {
                info.generation_defaults.as_ref().map_or_else(Self::default, |config| Self {
                    do_sample: config.do_sample,
                    $($($model_default: config.$model_default,)?)*
                    max_new_tokens: config.max_new_tokens,
                    min_new_tokens: config.min_new_tokens,
                    min_length: config.min_length,
                    stop_strings: config.stop_strings.clone(),
                    watermark: config.watermark.map(|watermark| Settings {
                        share: watermark.share,
                        bias: watermark.bias,
                        key: watermark.key,
                    }),
                })
            }

            /// Fills in the parameters that the request leaves out.
            pub fn fill(&self, parameters: &mut Parameters) {
                // Greedy is the default where the config says so, for requests that say nothing about sampling.
                if self.do_sample == Some(false) && !parameters.asks_for_sampling() {
                    parameters.do_sample = parameters.do_sample.or(Some(false));
                }
                parameters.default_max_new_tokens = self.max_new_tokens;
                parameters.default_min_new_tokens = self.min_new_tokens.unwrap_or(0);
                parameters.default_min_length = self.min_length.unwrap_or(0);
                parameters.default_stop.clone_from(&self.stop_strings);
                parameters.fill_from(Parameters {
                    watermark: self.watermark.map(Watermark::Given),
                    $($($model_default: self.$model_default,)?)*
                    ..Parameters::default()
                });
            }
        }
    };
}

parameter_table! { declare_defaults => }

/// Keys of the generation config that would change answers and are ignored.
pub fn ignored(info: &InfoResponse) -> Vec<String> {
    let defaults = info.generation_defaults.as_ref();
    defaults.map_or_else(Vec::new, |defaults| defaults.ignored.clone())
}

/// Rules of the generation config about which tokens may come. They apply to every API.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TokenRules {
    /// Number of tokens whose logits are changed wherever they may come.
    pub biased_tokens: usize,
    /// Number of runs of several tokens that are forbidden, or changed in their probability.
    pub biased_runs: usize,
    /// Tokens that begin no answer.
    pub begin_suppress_tokens: Vec<u32>,
    /// Token behind a prompt of one token.
    pub forced_bos_token_id: Option<u32>,
    /// Tokens of which the last one that a request allows is one.
    pub forced_eos_token_ids: Vec<u32>,
}

impl TokenRules {
    /// The rules of a model.
    pub fn of(info: &InfoResponse) -> Self {
        let config = info.generation_defaults.clone().unwrap_or_default();
        TokenRules {
            biased_tokens: config.bias_tokens.len(),
            biased_runs: config.run_lengths.len(),
            begin_suppress_tokens: config.begin_forbidden_token_ids,
            forced_bos_token_id: config.forced_bos_token_id,
            forced_eos_token_ids: config.forced_eos_token_ids,
        }
    }
}

/// Adds the generation config's rules about tokens to a request.
pub fn add_token_rules(info: &InfoResponse, request: &mut GenerationRequest) {
    let Some(config) = &info.generation_defaults else {
        return;
    };
    let sampling = &mut request.sampling;
    sampling.logit_bias_tokens.extend(&config.bias_tokens);
    sampling.logit_bias_values.extend(&config.bias_values);
    let mut rest = config.run_tokens.as_slice();
    for (length, bias) in config.run_lengths.iter().zip(&config.run_biases) {
        let (run, others) = rest.split_at((*length as usize).min(rest.len()));
        token_runs::add(sampling, run, *bias);
        rest = others;
    }
    let begin = &config.begin_forbidden_token_ids;
    sampling.begin_forbidden_token_ids.extend(begin);
    if let (Some(token), 1) = (config.forced_bos_token_id, request.token_ids.len()) {
        sampling.forced_positions.push(1);
        sampling.forced_token_ids.push(token);
    }
    request
        .stop
        .forced_end_token_ids
        .clone_from(&config.forced_eos_token_ids);
}

#[cfg(test)]
mod tests {
    use gridwork_proto::v1::GenerationDefaults;

    use super::*;

    fn defaults() -> Defaults {
        Defaults::of(&InfoResponse {
            generation_defaults: Some(GenerationDefaults {
                temperature: Some(0.6),
                top_k: Some(20),
                top_p: Some(0.95),
                repetition_penalty: Some(1.05),
                max_new_tokens: Some(9),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    #[test]
    fn defaults_fill_parameters_that_are_left_out() {
        let mut parameters = Parameters::default();
        defaults().fill(&mut parameters);
        assert_eq!(
            parameters,
            Parameters {
                temperature: Some(0.6),
                top_k: Some(20),
                top_p: Some(0.95),
                repetition_penalty: Some(1.05),
                default_max_new_tokens: Some(9),
                ..Parameters::default()
            }
        );
    }

    #[test]
    fn parameters_of_the_request_override_defaults() {
        let own = Parameters {
            temperature: Some(0.0),
            top_k: Some(0),
            top_p: Some(1.0),
            repetition_penalty: Some(1.0),
            max_new_tokens: Some(3),
            ..Parameters::default()
        };
        let mut parameters = own.clone();
        defaults().fill(&mut parameters);
        let expected = Parameters {
            default_max_new_tokens: Some(9),
            ..own
        };
        assert_eq!(parameters, expected);
    }

    #[test]
    fn a_greedy_default_gives_way_to_sampling_parameters() {
        let greedy = Defaults {
            do_sample: Some(false),
            ..Defaults::default()
        };
        let mut parameters = Parameters::default();
        greedy.fill(&mut parameters);
        assert_eq!(parameters.do_sample, Some(false));
        let mut parameters = Parameters {
            top_p: Some(0.9),
            ..Parameters::default()
        };
        greedy.fill(&mut parameters);
        assert_eq!(parameters.do_sample, None);
    }

    #[test]
    fn rules_of_the_config_are_added_to_the_requests() {
        let info = InfoResponse {
            generation_defaults: Some(GenerationDefaults {
                bias_tokens: vec![3],
                bias_values: vec![-1e9],
                run_tokens: vec![4, 5, 6, 7, 8],
                run_lengths: vec![2, 3],
                run_biases: vec![1.0, token_runs::NEVER],
                begin_forbidden_token_ids: vec![9],
                forced_bos_token_id: Some(1),
                forced_eos_token_ids: vec![2],
                ..Default::default()
            }),
            ..Default::default()
        };
        for (prompt, forced) in [(vec![5], vec![1]), (vec![5, 6], vec![])] {
            let mut request = GenerationRequest::greedy(prompt, 4);
            request.sampling.logit_bias_tokens = vec![7];
            request.sampling.logit_bias_values = vec![1.0];
            add_token_rules(&info, &mut request);
            let sampling = request.sampling;
            assert_eq!(sampling.logit_bias_tokens, [7, 3]);
            assert_eq!(sampling.logit_bias_values, [1.0, -1e9]);
            assert_eq!(sampling.run_tokens, [4, 5, 6, 7, 8]);
            assert_eq!(sampling.run_lengths, [2, 3]);
            assert_eq!(sampling.run_biases, [1.0, token_runs::NEVER]);
            assert_eq!(sampling.begin_forbidden_token_ids, [9]);
            assert_eq!(sampling.forced_token_ids, forced);
            assert_eq!(request.stop.forced_end_token_ids, [2]);
        }
        let rules = TokenRules::of(&info);
        assert_eq!((rules.biased_tokens, rules.biased_runs), (1, 2));
    }

    #[test]
    fn the_shortest_length_stop_sequences_and_the_watermark_are_defaults() {
        let watermark = Settings {
            share: 0.5,
            bias: 1.0,
            key: 3,
        };
        let defaults = Defaults {
            min_new_tokens: Some(4),
            min_length: Some(7),
            stop_strings: vec!["x".into()],
            watermark: Some(watermark),
            ..Defaults::default()
        };
        let mut parameters = Parameters::default();
        defaults.fill(&mut parameters);
        let expected = Parameters {
            default_min_new_tokens: 4,
            default_min_length: 7,
            default_stop: vec!["x".into()],
            watermark: Some(Watermark::Given(watermark)),
            ..Parameters::default()
        };
        assert_eq!(parameters, expected);
    }
}

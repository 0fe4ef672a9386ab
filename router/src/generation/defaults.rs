//! Defaults from the model's generation config, for parameters that a request leaves out.

use gridwork_proto::v1::{InfoResponse, SamplingParameters};
use serde::Serialize;
use utoipa::ToSchema;

use crate::generation::parameters::Parameters;
use crate::generation::table::parameter_table;

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
        }

        impl Defaults {
            pub fn of(info: &InfoResponse) -> Self {
                info.generation_defaults.as_ref().map_or_else(Self::default, |config| Self {
                    do_sample: config.do_sample,
                    $($($model_default: config.$model_default,)?)*
                    max_new_tokens: config.max_new_tokens,
                })
            }

            /// Fills in the parameters that the request leaves out.
            pub fn fill(&self, parameters: &mut Parameters) {
                // Greedy is the default where the config says so, for requests that say nothing about sampling.
                if self.do_sample == Some(false) && !parameters.asks_for_sampling() {
                    parameters.do_sample = parameters.do_sample.or(Some(false));
                }
                parameters.default_max_new_tokens = self.max_new_tokens;
                parameters.fill_from(Parameters {
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

/// Adds the generation config's biases of single tokens. They apply to every API.
pub fn add_biases(info: &InfoResponse, sampling: &mut SamplingParameters) {
    if let Some(defaults) = &info.generation_defaults {
        sampling.logit_bias_tokens.extend(&defaults.bias_tokens);
        sampling.logit_bias_values.extend(&defaults.bias_values);
    }
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
    fn biases_of_the_config_are_added_to_the_requests() {
        let info = InfoResponse {
            generation_defaults: Some(GenerationDefaults {
                bias_tokens: vec![3],
                bias_values: vec![-1e9],
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut sampling = SamplingParameters {
            logit_bias_tokens: vec![7],
            logit_bias_values: vec![1.0],
            ..Default::default()
        };
        add_biases(&info, &mut sampling);
        assert_eq!(sampling.logit_bias_tokens, [7, 3]);
        assert_eq!(sampling.logit_bias_values, [1.0, -1e9]);
    }
}

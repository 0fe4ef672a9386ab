//! Watermarks of texts, as text-generation-inference and Transformers have them.

use gridwork_proto::v1::SamplingParameters;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;

/// Watermark that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Watermark {
    None,
    /// As the operator's flags say.
    OfServer,
    Given(Settings),
}

/// Settings of a watermark.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[schema(as = WatermarkSettings)]
pub struct Settings {
    /// Share of the vocabulary that is favoured behind each token.
    pub share: f32,
    /// Value added to the logits of these tokens.
    pub bias: f32,
    /// Key of the random choice.
    pub key: u64,
}

/// Key that text-generation-inference and Transformers use when none is given.
pub const USUAL_KEY: u64 = 15_485_863;

/// `watermarking_config` of `generate()`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WatermarkingConfig {
    #[serde(default = "usual_ratio")]
    pub greenlist_ratio: f32,
    #[serde(default = "usual_bias")]
    pub bias: f32,
    #[serde(default = "usual_key")]
    pub hashing_key: u64,
    /// Only `lefthash` is supported.
    pub seeding_scheme: Option<String>,
    /// Without effect for `lefthash`, which reads one token.
    pub context_width: Option<u32>,
}

fn usual_ratio() -> f32 {
    0.25
}

fn usual_bias() -> f32 {
    2.0
}

fn usual_key() -> u64 {
    USUAL_KEY
}

/// Converts TGI's switch.
pub fn of_server(on: bool) -> Result<Watermark, ApiError> {
    Ok(match on {
        true => Watermark::OfServer,
        false => Watermark::None,
    })
}

/// Converts the setting of `generate()`.
pub fn of_config(config: WatermarkingConfig) -> Result<Watermark, ApiError> {
    match config.seeding_scheme.as_deref() {
        None | Some("lefthash") => Ok(Watermark::Given(Settings {
            share: config.greenlist_ratio,
            bias: config.bias,
            key: config.hashing_key,
        })),
        Some(scheme) => Err(ApiError::validation(
            "watermarking_config.seeding_scheme",
            format!(
                "`watermarking_config.seeding_scheme` must be `lefthash`; other schemes are not supported by this \
                 version. Given: {scheme:?}"
            ),
        )),
    }
}

impl Watermark {
    /// Writes the watermark into the parameters of sampling. `of_server`: that of the operator's flags.
    pub fn write(self, of_server: Settings, sampling: &mut SamplingParameters) {
        let settings = match self {
            Watermark::None => return,
            Watermark::OfServer => of_server,
            Watermark::Given(settings) => settings,
        };
        sampling.watermark_share = settings.share;
        sampling.watermark_bias = settings.bias;
        sampling.watermark_key = settings.key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_SERVER: Settings = Settings {
        share: 0.5,
        bias: 2.0,
        key: USUAL_KEY,
    };

    fn written(watermark: Watermark) -> (f32, f32, u64) {
        let mut sampling = SamplingParameters::default();
        watermark.write(OF_SERVER, &mut sampling);
        (
            sampling.watermark_share,
            sampling.watermark_bias,
            sampling.watermark_key,
        )
    }

    fn of_json(json: serde_json::Value) -> Watermark {
        of_config(serde_json::from_value(json).unwrap()).unwrap()
    }

    #[test]
    fn a_switch_takes_the_servers_settings() {
        assert_eq!(written(of_server(true).unwrap()), (0.5, 2.0, USUAL_KEY));
        assert_eq!(written(of_server(false).unwrap()), (0.0, 0.0, 0));
    }

    #[test]
    fn a_config_has_settings_of_its_own() {
        let whole = serde_json::json!({"greenlist_ratio": 0.75, "bias": 1.5, "hashing_key": 7, "context_width": 1});
        assert_eq!(written(of_json(whole)), (0.75, 1.5, 7));
        let empty = of_json(serde_json::json!({}));
        assert_eq!(written(empty), (0.25, 2.0, USUAL_KEY));
    }

    #[test]
    fn other_schemes_are_refused_by_name() {
        let config = serde_json::from_value(serde_json::json!({"seeding_scheme": "selfhash"}));
        let error = of_config(config.unwrap()).unwrap_err();
        assert_eq!(
            error.field.as_deref(),
            Some("watermarking_config.seeding_scheme")
        );
        let other = serde_json::json!({"ngram_len": 5, "keys": [1]});
        assert!(serde_json::from_value::<WatermarkingConfig>(other).is_err());
    }
}

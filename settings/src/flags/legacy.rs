//! Flags of text-generation-inference that have no mechanism here. Flags that would change a model's answers if they
//! were ignored are refused. The others are accepted with a warning, so that a deployment can move over.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

/// Effect of a flag of [`ALIASES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Accepted without effect, for this reason.
    None(&'static str),
    /// Refused, for this reason.
    Refused(&'static str),
}

/// A flag that is accepted or refused for its presence alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// Name of the flag without its dashes.
    pub name: &'static str,
    pub variable: &'static str,
    /// True if the flag may stand without a value.
    is_switch: bool,
    pub effect: Effect,
}

const fn value(name: &'static str, variable: &'static str, effect: Effect) -> Alias {
    Alias {
        name,
        variable,
        is_switch: false,
        effect,
    }
}

const fn switch(name: &'static str, variable: &'static str, effect: Effect) -> Alias {
    Alias {
        name,
        variable,
        is_switch: true,
        effect,
    }
}

const ONE_STEP: Effect = Effect::None("prefill and decode share every step");
const NO_TUNNEL: Effect = Effect::None("there is no tunnel");
const NO_STATISTICS: Effect = Effect::None("no usage statistics are sent");
const ROPE: Effect = Effect::Refused("set rope_parameters in the model's config.json");

/// Every such flag.
pub const ALIASES: [Alias; 15] = [
    value("waiting-served-ratio", "WAITING_SERVED_RATIO", ONE_STEP),
    value("max-waiting-tokens", "MAX_WAITING_TOKENS", ONE_STEP),
    switch("ngrok", "NGROK", NO_TUNNEL),
    value("ngrok-authtoken", "NGROK_AUTHTOKEN", NO_TUNNEL),
    value("ngrok-edge", "NGROK_EDGE", NO_TUNNEL),
    value("usage-stats", "USAGE_STATS", NO_STATISTICS),
    switch("disable-usage-stats", "DISABLE_USAGE_STATS", NO_STATISTICS),
    switch(
        "disable-crash-reports",
        "DISABLE_CRASH_REPORTS",
        Effect::None("no crash reports are sent"),
    ),
    switch(
        "disable-custom-kernels",
        "DISABLE_CUSTOM_KERNELS",
        Effect::None("the shard chooses its kernels"),
    ),
    value(
        "weights-cache-override",
        "WEIGHTS_CACHE_OVERRIDE",
        Effect::None("use --huggingface-hub-cache"),
    ),
    switch(
        "enable-prefill-logprobs",
        "ENABLE_PREFILL_LOGPROBS",
        Effect::None("they are always available"),
    ),
    value(
        "lora-adapters",
        "LORA_ADAPTERS",
        Effect::Refused("adapters are not available"),
    ),
    value(
        "kv-cache-dtype",
        "KV_CACHE_DTYPE",
        Effect::Refused("the cache has the model's dtype (see --dtype)"),
    ),
    value("rope-scaling", "ROPE_SCALING", ROPE),
    value("rope-factor", "ROPE_FACTOR", ROPE),
];

/// The flags of [`ALIASES`] that were given.
#[derive(Debug, Clone, Default)]
pub struct Legacy(Vec<&'static Alias>);

impl Legacy {
    /// One message for each flag that was given and does nothing.
    pub fn warnings(&self) -> Vec<String> {
        let given = self.0.iter();
        given
            .filter_map(|alias| match alias.effect {
                Effect::None(why) => Some(format!("--{} has no effect: {why}", alias.name)),
                Effect::Refused(_) => None,
            })
            .collect()
    }

    /// The reason to refuse the command line, when a flag was given that would change the model's answers.
    pub fn refusal(&self) -> Option<String> {
        self.0.iter().find_map(|alias| match alias.effect {
            Effect::None(_) => None,
            Effect::Refused(why) => Some(format!(
                "--{} (or the variable {}) is not supported: {why}; ignoring it would change the model's answers, so \
                 remove it",
                alias.name, alias.variable
            )),
        })
    }
}

impl Args for Legacy {
    fn augment_args(command: Command) -> Command {
        command.args(ALIASES.iter().map(|alias| {
            let arg = Arg::new(alias.name)
                .long(alias.name)
                .env(alias.variable)
                .hide(true)
                .hide_env_values(true);
            match alias.is_switch {
                true => arg.num_args(0..=1).default_missing_value("true"),
                false => arg.allow_hyphen_values(true),
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Legacy {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |alias: &&Alias| matches.contains_id(alias.name);
        Ok(Self(ALIASES.iter().filter(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Former names of flags. Read while the command line is parsed.
#[derive(Debug, Clone, Default, Args)]
pub struct OldNames {
    /// Former name of --max-input-tokens
    #[arg(long, env = "MAX_INPUT_LENGTH", hide = true, value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_input_length: Option<u32>,
}

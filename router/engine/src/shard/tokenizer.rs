//! Tokenizing by the shard, for models whose tokenizer exists only as Python code.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_proto::v1::TokenizeRequest;
use gridwork_proto::v1::text_tokenizer_client::TextTokenizerClient;
use tokio::sync::Mutex;
use tonic::Code;
use tonic::transport::Channel;

use crate::shard::client::{ShardAddress, channel};

/// Maximum time to wait for a shard that is being restarted.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Reasons why a text was not tokenized.
#[derive(Debug, thiserror::Error)]
pub enum TokenizeError {
    /// The tokenizer refuses the text. The message is for the user.
    #[error("{0}")]
    Refused(String),
    /// The shard cannot be reached, or failed.
    #[error("the shard that tokenizes for this model does not answer: {0}")]
    Lost(String),
}

/// Client of the shard's tokenizer. Cheap to clone; connects when it is first used.
#[derive(Debug, Clone)]
pub struct ShardTokenizer {
    address: ShardAddress,
    client: Arc<Mutex<Option<TextTokenizerClient<Channel>>>>,
}

impl ShardTokenizer {
    pub fn new(address: ShardAddress) -> Self {
        Self {
            address,
            client: Arc::default(),
        }
    }

    /// Tokenizes `text`. `add_special_tokens` adds those that the tokenizer puts around a text.
    pub async fn encode(
        &self,
        text: String,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, TokenizeError> {
        let began = Instant::now();
        let request = TokenizeRequest {
            text,
            add_special_tokens,
        };
        loop {
            let status = match self.client().await {
                Ok(mut client) => match client.tokenize(request.clone()).await {
                    Ok(response) => return Ok(response.into_inner().token_ids),
                    Err(status) => status,
                },
                Err(error) => tonic::Status::unavailable(error.to_string()),
            };
            match status.code() {
                Code::InvalidArgument => {
                    return Err(TokenizeError::Refused(status.message().to_owned()));
                }
                // Codes of a broken connection, for example when the shard ends.
                Code::Unavailable | Code::Unknown | Code::Cancelled
                    if began.elapsed() < PATIENCE =>
                {
                    self.client.lock().await.take();
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                _ => return Err(TokenizeError::Lost(status.message().to_owned())),
            }
        }
    }

    async fn client(&self) -> Result<TextTokenizerClient<Channel>, tonic::transport::Error> {
        let mut held = self.client.lock().await;
        if let Some(client) = held.as_ref() {
            return Ok(client.clone());
        }
        let client = TextTokenizerClient::new(channel(&self.address).await?)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Ok(held.insert(client).clone())
    }
}

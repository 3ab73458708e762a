//! Verification of all stored blobs, with an answer every few seconds. It ends when the client goes away.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use hearth_proto::v1::VerifyContentResponse;

use super::super::error::ApiError;
use super::response_stream::ResponseStream;
use crate::model::Digest;
use crate::registry::blobs::{BlobState, BlobStore};
use crate::task;

const ANSWER_INTERVAL: Duration = Duration::from_secs(2);

struct ContentVerification {
    store: BlobStore,
    left: std::vec::IntoIter<Digest>,
    answer: VerifyContentResponse,
}

pub(super) fn verify_all(store: BlobStore, digests: Vec<Digest>) -> ResponseStream<VerifyContentResponse> {
    let answer = VerifyContentResponse { total_blobs: digests.len() as u64, ..Default::default() };
    let verification = ContentVerification { store, left: digests.into_iter(), answer };
    let answers = stream::unfold(Some(verification), |verification| async {
        let mut verification = verification?;
        match verification.next().await {
            Ok(answer) => {
                let rest = (!answer.done).then_some(verification);
                Some((Ok(answer), rest))
            }
            Err(error) => Some((Err(error.into()), None)),
        }
    });
    answers.boxed()
}

/// Returns the first quarantined blobs that were not sent again.
pub(super) async fn quarantined(store: &BlobStore) -> Result<Vec<Digest>, ApiError> {
    let store = store.clone();
    let listed = task::blocking("list quarantine", move || store.quarantined()).await;
    let listed = listed.map_err(std::io::Error::other).flatten();
    listed.map_err(|error| ApiError::internal("the quarantine cannot be read", error))
}

impl ContentVerification {
    async fn next(&mut self) -> Result<VerifyContentResponse, ApiError> {
        let began = Instant::now();
        while began.elapsed() < ANSWER_INTERVAL {
            let Some(digest) = self.left.next() else {
                let listed = quarantined(&self.store).await?;
                self.answer.quarantined = listed.iter().map(Digest::to_string).collect();
                self.answer.done = true;
                break;
            };
            let state = self.store.verify(digest, 0).await;
            let state =
                state.map_err(|error| ApiError::internal(&format!("blob {digest} cannot be read"), error))?;
            if let BlobState::Intact { bytes } | BlobState::Damaged { bytes } = state {
                self.answer.blobs += 1;
                self.answer.bytes += bytes;
            }
            self.answer.damaged_blobs += u64::from(matches!(state, BlobState::Damaged { .. }));
        }
        Ok(self.answer.clone())
    }
}

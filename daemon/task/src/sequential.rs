//! Sequential blocking work on one value: each piece of work runs in the background while the caller prepares the next
//! one.
//!
//! A piece occupies a blocking thread only while it runs; no thread waits between two pieces.

use tokio::task::JoinHandle;

/// Value with the work on it, of which at most one piece runs at a time.
pub struct SequentialWork<T, E> {
    name: &'static str,
    state: SequentialState<T, E>,
}

enum SequentialState<T, E> {
    Idle(T),
    Working(JoinHandle<Result<T, SequentialError<E>>>),
    Ended,
}

/// Reason why no further work is accepted.
#[derive(Debug)]
pub enum SequentialError<E> {
    Failed(E),
    /// The daemon is shutting down, a piece panicked, or an earlier piece failed.
    Ended,
}

impl<T: Send + 'static, E: Send + 'static> SequentialWork<T, E> {
    pub const fn new(name: &'static str, value: T) -> Self {
        Self { name, state: SequentialState::Idle(value) }
    }

    /// Waits for the previous piece of work and starts the next one. If the previous one failed, returns its error.
    pub async fn next(
        &mut self,
        work: impl FnOnce(&mut T) -> Result<(), E> + Send + 'static,
    ) -> Result<(), SequentialError<E>> {
        let mut value = self.value().await?;
        let name = self.name;
        let piece = super::blocking(name, move || work(&mut value).map(|()| value));
        self.state = SequentialState::Working(super::spawn(name, async move {
            match piece.await {
                Ok(done) => done.map_err(SequentialError::Failed),
                Err(_) => Err(SequentialError::Ended),
            }
        }));
        Ok(())
    }

    /// Returns the value once all work on it is done.
    pub async fn finish(mut self) -> Result<T, SequentialError<E>> {
        self.value().await
    }

    async fn value(&mut self) -> Result<T, SequentialError<E>> {
        match std::mem::replace(&mut self.state, SequentialState::Ended) {
            SequentialState::Idle(value) => Ok(value),
            SequentialState::Working(piece) => piece.await.unwrap_or(Err(SequentialError::Ended)),
            SequentialState::Ended => Err(SequentialError::Ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_done_in_order_and_an_error_ends_it() {
        let mut work = SequentialWork::<Vec<u32>, &str>::new("test", Vec::new());
        for number in 0..10 {
            work.next(move |done| {
                done.push(number);
                Ok(())
            })
            .await
            .unwrap();
        }
        assert_eq!(work.finish().await.unwrap(), (0..10).collect::<Vec<_>>());
        let mut fails = SequentialWork::<(), &str>::new("test", ());
        fails.next(|()| Err("no")).await.unwrap();
        assert!(matches!(fails.next(|()| Ok(())).await, Err(SequentialError::Failed("no"))));
        assert!(matches!(fails.finish().await, Err(SequentialError::Ended)));
    }
}

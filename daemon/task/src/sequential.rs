//! Sequential blocking work on one value: each piece runs in the background while its owner prepares the next one.
//!
//! Each piece takes a thread and releases it afterwards: no thread waits between two pieces.

use tokio::task::JoinHandle;

/// Value with its sequential work; the last piece may still be running.
pub struct SequentialWork<T, E> {
    name: &'static str,
    state: SequentialState<T, E>,
}

enum SequentialState<T, E> {
    Idle(T),
    Working(JoinHandle<Result<T, SequentialError<E>>>),
    Over,
}

/// Reason why no more work is done.
#[derive(Debug)]
pub enum SequentialError<E> {
    Failed(E),
    /// The daemon shuts down, the work panicked, or it failed before.
    Ended,
}

impl<T: Send + 'static, E: Send + 'static> SequentialWork<T, E> {
    pub const fn new(name: &'static str, value: T) -> Self {
        Self { name, state: SequentialState::Idle(value) }
    }

    /// Starts a piece of work once the previous one has ended; returns the previous one's error.
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
        match std::mem::replace(&mut self.state, SequentialState::Over) {
            SequentialState::Idle(value) => Ok(value),
            SequentialState::Working(piece) => piece.await.unwrap_or(Err(SequentialError::Ended)),
            SequentialState::Over => Err(SequentialError::Ended),
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

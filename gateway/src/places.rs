//! A bounded number of places whose bound may change while they are taken.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Places, first come, first served. A bound below what is taken holds as soon as enough are given back.
#[derive(Debug)]
pub struct Places {
    free: Semaphore,
    bound: Mutex<Bound>,
}

#[derive(Debug)]
struct Bound {
    max: usize,
    /// Taken places that are not free again when they are given back.
    surplus: usize,
}

/// One place, given back on drop.
#[derive(Debug)]
pub struct Place<'a> {
    places: &'a Places,
    permit: Option<SemaphorePermit<'a>>,
}

impl Places {
    /// This many places.
    pub fn new(max: usize) -> Self {
        Self { free: Semaphore::new(max), bound: Mutex::new(Bound { max, surplus: 0 }) }
    }

    fn bound(&self) -> MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes how many there are.
    pub fn resize(&self, max: usize) {
        let mut bound = self.bound();
        if let Some(more) = max.checked_sub(bound.max) {
            let kept = more.min(bound.surplus);
            bound.surplus -= kept;
            self.free.add_permits(more - kept);
        } else {
            let fewer = bound.max - max;
            bound.surplus += fewer - self.free.forget_permits(fewer);
        }
        bound.max = max;
    }

    /// Waits for a place. Cancel safe: who stops waiting takes none.
    pub async fn take(&self) -> Place<'_> {
        let permit = self.free.acquire().await.expect("the semaphore is never closed");
        Place { places: self, permit: Some(permit) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut bound = self.places.bound();
        if bound.surplus > 0 {
            bound.surplus -= 1;
            if let Some(permit) = self.permit.take() {
                permit.forget();
            }
        }
        // Otherwise the permit goes back with the place; the bound is held until then, so that `resize` counts it once.
        drop(self.permit.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place, if one is free now.
    async fn now(places: &Places) -> Option<Place<'_>> {
        tokio::select! {
            biased;
            place = places.take() => Some(place),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn no_more_than_the_bound_are_taken_whichever_way_it_changes() {
        let places = Places::new(3);
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(now(&places).await.unwrap());
        }
        assert!(now(&places).await.is_none());
        places.resize(1);
        taken.truncate(1);
        assert!(now(&places).await.is_none(), "two of three went, the last one fills the bound");
        places.resize(2);
        taken.push(now(&places).await.unwrap());
        assert!(now(&places).await.is_none());
        places.resize(1);
        places.resize(3);
        taken.push(now(&places).await.unwrap());
        assert!(now(&places).await.is_none(), "a bound that came back counts once");
        taken.clear();
        for _ in 0..3 {
            taken.push(now(&places).await.unwrap());
        }
        assert!(now(&places).await.is_none());
    }
}

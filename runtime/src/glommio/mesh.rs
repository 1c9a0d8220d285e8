//! The mesh on the real machine: one bounded queue per core, into which every core may put messages.

use std::sync::Arc;

use crate::{CoreId, Mesh, MeshFull};

/// One core's endpoint: the queues of all cores to send to, and its own to receive from.
///
/// A message costs one lock, and one wake of the other core if that is parked: batch what crosses.
pub struct GlommioMesh<M> {
    senders: Arc<[flume::Sender<M>]>,
    receiver: flume::Receiver<M>,
}

impl<M> Clone for GlommioMesh<M> {
    fn clone(&self) -> Self {
        Self { senders: Arc::clone(&self.senders), receiver: self.receiver.clone() }
    }
}

impl<M: Send + 'static> GlommioMesh<M> {
    /// The endpoints of a mesh of `cores` cores, whose queues hold `queue_length` messages each.
    pub(crate) fn endpoints(cores: u16, queue_length: usize) -> Vec<Self> {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..cores).map(|_| flume::bounded(queue_length)).unzip();
        let senders: Arc<[_]> = senders.into();
        receivers.into_iter().map(|receiver| Self { senders: Arc::clone(&senders), receiver }).collect()
    }
}

impl<M: Send + 'static> Mesh<M> for GlommioMesh<M> {
    fn cores(&self) -> u16 {
        u16::try_from(self.senders.len()).expect("a mesh is made from a u16")
    }

    fn send(&self, to: CoreId, message: M) -> Result<(), MeshFull<M>> {
        self.senders[usize::from(to.0)].try_send(message).map_err(|error| MeshFull(error.into_inner()))
    }

    async fn receive(&self) -> M {
        self.receiver.recv_async().await.expect("an endpoint holds a sender of every queue")
    }

    fn try_receive(&self) -> Option<M> {
        self.receiver.try_recv().ok()
    }
}

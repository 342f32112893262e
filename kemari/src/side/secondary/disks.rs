//! The replicated disks of a standby VM: the copy, what commits release, and the takeover.

mod awaited;
mod copy;
#[cfg(test)]
mod disks_test;
mod reports;
mod shown;
mod work;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::bail;
use kemari_sync::{CopyDisk, DiskOffer};
use kemari_vmm::disk::Operation;
use kemari_vmm::machine::Machine;

use super::super::assembly;
use super::super::capture::explain;
use super::super::drill::MomentOfDisk;
use super::super::step::step;
use crate::config::Config;
use crate::replica::{Barrier, Image, Remains, Replica, Tracker};
use awaited::Awaited;

pub use awaited::Wait;

/// The replicated disks of a standby VM.
pub struct StandbyDisks {
    /// Until the machine takes them over.
    replicas: Vec<Replica>,
    images: Vec<Arc<Image>>,
    /// Which disk of the machine each of them is.
    places: Vec<usize>,
    /// How many disks the machine has.
    disks: usize,
    /// The last output that was given to each replica.
    applied: Vec<Option<u64>>,
    /// Commits so far.
    commits: u64,
    /// Whether their images are marked as inconsistent: blocks may come.
    are_targets: bool,
    /// What waits for them.
    pub awaited: Awaited,
    /// Whether the last sync that was checked ends the VM.
    pub is_stop: bool,
}

impl StandbyDisks {
    pub fn new(config: &Config, replicas: Vec<Replica>) -> Self {
        let places = config.disks.iter().enumerate();
        Self {
            images: replicas.iter().map(|replica| replica.image().clone()).collect(),
            applied: vec![None; replicas.len()],
            replicas,
            places: places
                .filter(|(_, disk)| config.replicates(disk))
                .map(|(place, _)| place)
                .collect(),
            disks: config.disks.len(),
            commits: 0,
            are_targets: false,
            awaited: Awaited::default(),
            is_stop: false,
        }
    }

    /// The disks as they are when all commits so far are carried out, for a drill. Each layer holds at most
    /// so many bytes.
    pub fn moment(&self, layer_bytes_max: u64) -> Vec<MomentOfDisk> {
        let replicas = self.replicas.iter().zip(&self.applied);
        replicas
            .map(|(replica, applied)| {
                let (given, overlay) = channel();
                replica.overlay(layer_bytes_max, move |overlay| {
                    // The drill may be over.
                    let _ = given.send(overlay);
                });
                MomentOfDisk {
                    applied: *applied,
                    overlay,
                }
            })
            .collect()
    }

    /// What is told to the primary.
    pub fn offers(&self) -> Vec<DiskOffer> {
        self.images.iter().map(|image| image.offer()).collect()
    }

    /// Whether all replicas work.
    pub fn check(&self) -> Result<(), String> {
        match self.replicas.iter().find_map(Replica::failure) {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }

    /// That an image has done nothing for longer than `limit` with something to do, in words.
    pub fn stuck(&self, limit: Duration) -> Option<String> {
        self.replicas.iter().find_map(|replica| replica.stuck(limit))
    }

    /// Lets the replicas go whose images do not answer, without waiting for them.
    pub fn abandon_stuck(&mut self, limit: Duration) -> Vec<Remains> {
        let mut remains = Vec::new();
        for replica in std::mem::take(&mut self.replicas) {
            match replica.stuck(limit) {
                Some(reason) => remains.push(replica.abandon(&reason)),
                None => self.replicas.push(replica),
            }
        }
        remains
    }

    /// Gives one replica an output that no guest has asked for.
    #[cfg(test)]
    pub(super) fn give(&self, index: usize, id: u64, operation: Operation) {
        self.replicas[index].apply(vec![(id, operation)]);
    }

    fn is_full(&self) -> bool {
        self.replicas.iter().any(Replica::is_full)
    }

    fn wait(&mut self, wait: Wait) {
        self.awaited.begin(wait, self.replicas.len());
        let replicas = self.replicas.iter();
        replicas.for_each(|replica| replica.barrier(wait.barrier()));
    }

    fn mark_targets(&mut self, plans: &[CopyDisk]) -> anyhow::Result<()> {
        if plans.len() != self.images.len() {
            bail!(
                "the primary copies {} disks, not {}",
                plans.len(),
                self.images.len()
            );
        }
        for (image, plan) in self.images.iter().zip(plans) {
            step(format_args!("mark the image of {}", image.disk()), || {
                image.become_target(plan)
            })?;
        }
        self.are_targets = true;
        Ok(())
    }

    /// Gives the replicas what a commit releases, in order.
    fn apply(&mut self, machine: &Machine, states: &[kemari_vmm::state::StateBlob]) -> Result<(), String> {
        let mut place_of = vec![None; self.disks];
        for (index, place) in self.places.iter().enumerate() {
            place_of[*place] = Some(index);
        }
        // Other disks are not this side's business: all of their outputs count as applied.
        let applied = |disk: usize| match place_of[disk] {
            Some(index) => self.applied[index],
            None => Some(u64::MAX),
        };
        let operations = machine
            .disk_operations(states, applied)
            .map_err(|error| explain(&error))?;
        let mut outputs: Vec<Vec<(u64, Operation)>> = self.replicas.iter().map(|_| Vec::new()).collect();
        for operation in operations {
            if let Some(index) = place_of[operation.disk] {
                self.applied[index] = Some(operation.id);
                outputs[index].push((operation.id, operation.operation));
            }
        }
        for (replica, outputs) in self.replicas.iter().zip(outputs) {
            if !outputs.is_empty() {
                replica.apply(outputs);
            }
        }
        self.commits += 1;
        if self.commits == 2 {
            // The first one's output was released, so the pair is recorded.
            self.replicas.iter().for_each(Replica::note_recorded);
        }
        Ok(())
    }

    /// Waits until the replicas have carried out what they were given, and closes their images; which of them
    /// finish nothing for longer than `limit` are let go.
    pub fn finish(&mut self, limit: Duration) -> Vec<Remains> {
        let replicas = self.replicas.drain(..);
        replicas
            .filter_map(|replica| replica.finish_within(limit).err())
            .map(|(_, remains)| remains)
            .collect()
    }

    /// Everything was carried out: closes the images, for the machine.
    pub fn close(&mut self) {
        self.replicas.drain(..).for_each(|replica| drop(replica.finish()));
    }

    /// The images, in the order of the configuration.
    pub fn images(&self) -> &[Arc<Image>] {
        &self.images
    }

    /// Lets the machine know what the images have already, and who watches them.
    pub fn watched(&self, machine: &Machine, config: &Config) -> anyhow::Result<Vec<Arc<Tracker>>> {
        for (image, applied) in self.images.iter().zip(&self.applied) {
            if let Some(applied) = applied {
                machine.note_applied(image.disk(), *applied)?;
            }
        }
        assembly::watch_disks(machine, config, &self.images)
    }

    /// The VM was stopped: everything is made durable, and the records say so, if the last commit was the
    /// stop. An image that does nothing for longer than `limit` is not waited for.
    fn stop(&mut self, limit: Duration) {
        if self.is_stop {
            self.replicas
                .iter()
                .for_each(|replica| replica.barrier(Barrier::Stop));
        }
        for replica in self.replicas.drain(..) {
            if let Err((reason, _)) = replica.finish_within(limit) {
                tracing::error!("{reason}; it is left as it is");
            }
        }
    }
}

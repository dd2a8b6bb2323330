//! Damage to what is in a store, of every kind and in every place: whatever reads it gives the right bytes or an error that names the
//! object and the place, a whole verification notices every byte, and salvage brings back exactly what is not damaged.

#[path = "../support/mod.rs"]
mod support;

mod judge;
mod made_up;
mod matrix;
mod verify;
mod world;

//! Directory trees through tree sections: from directories and tar streams, and back.

mod changing;
mod describe;
mod fixture;
mod hostile;
mod restore;
mod round_trip;
mod tar_streams;

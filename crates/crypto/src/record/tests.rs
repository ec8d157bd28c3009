use proptest::prelude::*;

use super::*;

const INDEX: ReceiverIndex = ReceiverIndex(0xabcd_ef01);

fn pair(aead: Aead) -> (SealingKey, OpeningKey) {
    let key = || RecordKey::new(aead, Zeroizing::new([0x42; 32]));
    (
        SealingKey::new(key(), DatagramType::Record, INDEX),
        OpeningKey::new(key(), DatagramType::Record, INDEX, 0),
    )
}

fn sealed(key: &mut SealingKey, content: Content, text: &[u8]) -> Vec<u8> {
    let mut record = vec![0xee; text.len() + OVERHEAD];
    record[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
    assert_eq!(key.seal(content, &mut record, text.len()), Ok(record.len()));
    record
}

const BOTH: [Aead; 2] = [Aead::ChaCha20Poly1305, Aead::Aes256Gcm];

#[test]
fn a_record_comes_back_with_its_content_and_counter() {
    for aead in BOTH {
        let (mut sealing, mut opening) = pair(aead);
        for (counter, content) in [(0, Content::Packet), (1, Content::Control)] {
            let mut record = sealed(&mut sealing, content, b"hello");
            let header = RecordHeader::parse(&record).unwrap();
            assert_eq!(header, RecordHeader { receiver: INDEX, counter, content });
            let opened = opening.open(&mut record).unwrap();
            assert_eq!((opened.content, opened.counter, opened.newest), (content, counter, true));
            assert_eq!(opened.plaintext, b"hello");
        }
    }
}

#[test]
fn records_are_what_the_noise_transport_of_snow_makes() {
    use snow::Builder;
    for (aead, name) in [
        (Aead::ChaCha20Poly1305, "Noise_NN_25519_ChaChaPoly_BLAKE2s"),
        (Aead::Aes256Gcm, "Noise_NN_25519_AESGCM_SHA256"),
    ] {
        let mut client = Builder::new(name.parse().unwrap()).build_initiator().unwrap();
        let mut gateway = Builder::new(name.parse().unwrap()).build_responder().unwrap();
        let (mut message, mut payload) = ([0; 128], [0; 128]);
        let len = client.write_message(&[], &mut message).unwrap();
        gateway.read_message(&message[..len], &mut payload).unwrap();
        let len = gateway.write_message(&[], &mut message).unwrap();
        client.read_message(&message[..len], &mut payload).unwrap();
        let (raw, _) = client.dangerously_get_raw_split();
        let transport = client.into_stateless_transport_mode().unwrap();

        // snow's transport has no additional data; the key, the nonce and the cipher are what is compared.
        let mut key = RecordKey::new(aead, Zeroizing::new(raw));
        for counter in [0, 1, 0x0102_0304_0506_0708] {
            let mut text = *b"the same ciphertext";
            let tag = key.seal(counter, &[], &mut text);
            let len = transport.write_message(counter, b"the same ciphertext", &mut message).unwrap();
            assert_eq!([&text[..], tag.as_ref()].concat(), message[..len], "{aead:?} at {counter}");
        }
    }
}

#[test]
fn no_byte_of_a_record_can_be_changed_or_cut() {
    for aead in BOTH {
        let (mut sealing, mut opening) = pair(aead);
        let record = sealed(&mut sealing, Content::Packet, &[7; 40]);
        for at in 0..record.len() {
            for bit in 0..8 {
                let mut damaged = record.clone();
                damaged[at] ^= 1 << bit;
                assert!(opening.open(&mut damaged).is_err(), "bit {bit} of byte {at} is not protected");
            }
        }
        for len in 0..record.len() {
            assert!(opening.open(&mut record[..len].to_vec()).is_err());
        }
        assert_eq!(opening.open(&mut record.clone()).unwrap().counter, 0);
    }
}

#[test]
fn a_replayed_record_is_refused_and_a_forged_one_does_not_move_the_window() {
    let (mut sealing, mut opening) = pair(Aead::ChaCha20Poly1305);
    let record = sealed(&mut sealing, Content::Packet, b"once");
    let mut forged = record.clone();
    forged[8..16].copy_from_slice(&u64::MAX.to_be_bytes());
    assert_eq!(opening.open(&mut forged), Err(OpenError::Authentication));
    assert_eq!(opening.refused(), 1);
    opening.open(&mut record.clone()).unwrap();
    assert_eq!(opening.open(&mut record.clone()), Err(OpenError::Replay(ReplayError::Duplicate)));
}

#[test]
fn only_a_record_above_all_others_is_newest() {
    let (mut sealing, mut opening) = pair(Aead::Aes256Gcm);
    let mut records: Vec<_> = (0..3).map(|_| sealed(&mut sealing, Content::Packet, b"x")).collect();
    assert!(opening.open(&mut records[1]).unwrap().newest);
    assert!(!opening.open(&mut records[0]).unwrap().newest);
    assert!(opening.open(&mut records[2]).unwrap().newest);
}

#[test]
fn an_opening_key_asks_for_a_rekey_when_its_peer_has_sealed_half_of_what_it_may() {
    for aead in BOTH {
        let (mut sealing, mut opening) = pair(aead);
        assert!(!opening.wants_rekey());
        let half = aead.sealed_records_max() / 2;
        for (counter, wanted) in [(half - 1, false), (half, true)] {
            sealing.skip_to(counter);
            opening.open(&mut sealed(&mut sealing, Content::Packet, b"x")).unwrap();
            assert_eq!(opening.wants_rekey(), wanted);
        }
        // Skipping never brings a counter back.
        sealing.skip_to(0);
        assert_eq!(sealing.sealed(), half + 1);
    }
}

#[test]
fn a_sealing_key_stops_at_its_limit_and_not_before() {
    for aead in BOTH {
        let (mut sealing, _) = pair(aead);
        assert_eq!(sealing.limit, aead.sealed_records_max());
        sealing.next = sealing.limit / 2 - 1;
        assert!(!sealing.wants_rekey());
        sealed(&mut sealing, Content::Packet, b"half");
        assert!(sealing.wants_rekey());
        sealing.next = sealing.limit - 1;
        sealed(&mut sealing, Content::Packet, b"last");
        let mut buffer = [9; 40];
        assert_eq!(sealing.seal(Content::Packet, &mut buffer, 8), Err(SealLimitReached));
        assert_eq!(buffer, [9; 40]);
        assert_eq!(sealing.sealed(), aead.sealed_records_max());
    }
}

#[test]
fn an_opening_key_stops_at_its_forgery_limit_and_not_before() {
    let (mut sealing, mut opening) = pair(Aead::ChaCha20Poly1305);
    let good = sealed(&mut sealing, Content::Packet, b"good");
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    opening.refused = opening.limit - 1;
    let mut next = sealed(&mut sealing, Content::Packet, b"next");
    opening.open(&mut next).unwrap();
    assert_eq!(opening.open(&mut forged.clone()), Err(OpenError::Authentication));
    assert_eq!(opening.open(&mut good.clone()), Err(OpenError::LimitReached));
}

#[test]
fn a_counter_is_spent_even_when_the_caller_breaks_the_contract() {
    let (mut sealing, _) = pair(Aead::ChaCha20Poly1305);
    let short = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = sealing.seal(Content::Packet, &mut [0; OVERHEAD], 1);
    }));
    assert!(short.is_err());
    assert_eq!(sealing.sealed(), 1);
}

#[test]
fn records_of_a_session_and_of_a_mesh_link_are_not_taken_for_each_other() {
    let key = || RecordKey::new(Aead::ChaCha20Poly1305, Zeroizing::new([1; 32]));
    let mut mesh = SealingKey::new(key(), DatagramType::Mesh, INDEX);
    let mut session = OpeningKey::new(key(), DatagramType::Record, INDEX, 0);
    let mut record = sealed(&mut mesh, Content::Packet, b"x");
    assert!(RecordHeader::parse(&record).is_none() && RecordHeader::parse_mesh(&record).is_some());
    assert_eq!(session.open(&mut record.clone()), Err(OpenError::Malformed));
    record[0] = DatagramType::Record as u8;
    assert_eq!(session.open(&mut record), Err(OpenError::Authentication));
}

#[test]
fn a_shrunk_key_goes_on_where_it_was() {
    let (mut sealing, mut opening) = pair(Aead::Aes256Gcm);
    let mut first = sealed(&mut sealing, Content::Packet, b"a");
    opening.open(&mut first).unwrap();
    let kept = sealed(&mut sealing, Content::Packet, b"late");
    let mut third = sealed(&mut sealing, Content::Packet, b"b");
    opening.open(&mut third).unwrap();
    sealing.shrink();
    opening.shrink();
    assert!(opening.open(&mut kept.clone()).is_err());
    let mut next = sealed(&mut sealing, Content::Packet, b"c");
    assert_eq!(opening.open(&mut next).unwrap().counter, 3);
}

#[test]
fn an_idle_pair_of_keys_stays_small() {
    assert!(size_of::<SealingKey>() <= 80, "{}", size_of::<SealingKey>());
    assert!(size_of::<OpeningKey>() <= 128, "{}", size_of::<OpeningKey>());
    assert!(size_of::<Expanded>() <= 768, "{}", size_of::<Expanded>());
}

#[test]
fn debug_output_names_no_key_byte() {
    let (sealing, opening) = pair(Aead::ChaCha20Poly1305);
    let shown = format!("{sealing:?} {opening:?}");
    assert!(!shown.contains("42") && !shown.contains("66"), "{shown}");
}

proptest! {
    #[test]
    fn no_datagram_panics_or_opens(mut bytes in prop::collection::vec(any::<u8>(), 0..200), typed in any::<bool>()) {
        let (_, mut opening) = pair(Aead::ChaCha20Poly1305);
        if typed && bytes.len() >= HEADER_LEN {
            bytes[..8].copy_from_slice(&[4, 0, 0, 0, 0xab, 0xcd, 0xef, 0x01]);
        }
        let _ = RecordHeader::parse(&bytes);
        prop_assert!(opening.open(&mut bytes).is_err());
    }

    #[test]
    fn every_length_and_order_of_records_opens_once(
        texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..20),
        order in any::<prop::sample::Index>(),
    ) {
        let (mut sealing, mut opening) = pair(Aead::Aes256Gcm);
        let mut records: Vec<_> = texts.iter().map(|text| sealed(&mut sealing, Content::Packet, text)).collect();
        let start = order.index(records.len());
        for offset in 0..records.len() {
            let at = (start + offset) % records.len();
            let again = records[at].clone();
            prop_assert_eq!(&*opening.open(&mut records[at]).unwrap().plaintext, &texts[at][..]);
            prop_assert!(opening.open(&mut again.clone()).is_err());
        }
    }
}
